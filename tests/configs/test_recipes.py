"""Every file in configs/: what it says of itself, that it goes with its dataset, and that it trains."""

import ast
import dataclasses
import importlib.util

import jax
import numpy as np
import pytest
from conftest import ROOT, one_device, refused

from flax_resnet.config import freeze
from flax_resnet.config.plan import plan, planned_optimizer
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.training import sharding
from flax_resnet.training.plan_text import describe
from flax_resnet.training.state import abstract_state, build_model
from flax_resnet.training.train import train

FOLDER = ROOT / "configs"
FILES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")
EXAMPLES = {
    "digits": (1437, 360, 10),
    "cifar10": (50_000, 10_000, 10),
    "imagenet2012": (1_281_167, 50_000, 1000),
}


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(name, *argument):
    return freeze(module_of(name).get_config(*argument))


# File, and network where it takes one; what is fine-tuned on is the user's: tests/test_finetune.py.
CHOICES = ("NETWORKS", "PROCEDURES", "RUNS")  # what a recipe may offer behind the colon
RECIPES = [
    (name, *choice)
    for name in FILES
    if "finetune" not in name
    for choice in [(c,) for key in CHOICES for c in getattr(module_of(name), key, ())] or [()]
]
IDS = [":".join(names) for names in RECIPES]
# Of FFCV's twelve, which differ by their lengths, the two shortest.
STEPPED = [names for names in RECIPES if names[0] != "ffcv" or names[1].endswith("_16")]


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_says_its_command_result_and_source(name):
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert f"python -m flax_resnet.main --config configs/{name}.py" in text
    assert "Expected: " in text
    assert "yet run here" in text or "seeds" in text


@pytest.mark.parametrize("names", RECIPES, ids=IDS)
def test_a_recipe_plans_its_dataset(names):
    config = recipe(*names)
    images, tests, classes = EXAMPLES[config.data.name]
    made = plan(config, num_train=images, num_eval=tests, num_classes=classes)
    model = build_model(config, classes)
    optimizer = planned_optimizer(config, made, model)
    # Rules that match nothing are refused here.
    shapes = abstract_state(config, model, optimizer, sharding.make_mesh())
    assert config.model.name in describe(config, made, shapes, resident=False)


@pytest.mark.slow
@pytest.mark.parametrize("names", STEPPED, ids=map(":".join, STEPPED))
def test_a_recipe_takes_two_real_steps_at_reduced_size(names, tmp_path, monkeypatch):
    # On one device: eight copies of VGG-16's 138 million parameters and momenta took 19 GB.
    monkeypatch.setattr(sharding, "make_mesh", one_device)
    config = recipe(*names)
    model = build_model(config, 4)
    stages = len(getattr(model, "widths", ()))  # none in VGG and AlexNet
    size = min(32, config.data.image_size) if stages else 64
    sections = dataclasses.asdict(config)
    own = config.data.but(source="python", image_size=size, eval_size=0)
    sections["data"] = dataclasses.asdict(own)
    if config.data.progressive:
        sections["data"]["progressive"] = ((0.0, size // 2), (1.0, size))
    schedule = sections["schedule"]
    warmup = float(schedule["warmup"] > 0)
    schedule |= {"unit": "steps", "warmup": warmup}
    if config.schedule.milestones:
        schedule["milestones"] = (warmup + 1, warmup + 2)
    sections["train"] |= {"batch_size": 16, "epochs": 1, "eval_batch_size": 16, "steps_per_call": 1}
    sections["data"]["augmentation_repeats"] = min(2, config.data.augmentation_repeats)
    if stages:
        sections["model"]["widths"] = (16, 16, 32, 32)[:stages]
    if hasattr(model, "depths"):
        sections["model"]["depths"] = (1,) * stages
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (32, size, size, 3)).astype(np.uint8)
    source = ArraySource(images, np.arange(32) % 4)
    if config.distill.teacher:  # the network itself, two steps old
        teacher, alone = tmp_path / "teacher", sections | {"distill": {}}
        train(freeze(alone), teacher, train_source=source, eval_source=source)
        sections["distill"]["teacher"] = str(teacher)
    result = train(freeze(sections), tmp_path / "run", train_source=source, eval_source=source)
    assert result.step == 2


@pytest.mark.parametrize(
    ("name", "meant"), [("cifar_he2016", "resnet56"), ("torchvision_v1", "resnet50")]
)
def test_a_network_of_another_name_is_refused(name, meant):
    with refused(f"configs/{name}.py", "resnet51") as caught:
        recipe(name, "resnet51")
    assert meant in caught.value.allowed


def test_norms_of_the_second_weights_do_not_decay():
    config = recipe("resnet50_v2")
    made = plan(config, num_train=1_281_167, num_eval=1, num_classes=1000)
    optimizer = planned_optimizer(config, made, build_model(config, 1000))
    params = {
        "bn1": {"scale": np.ones(2)},
        "fc": {"bias": np.ones(2)},
        "layer1_0": {"downsample_1": {"scale": np.ones(2)}},
    }
    params = jax.tree.map(np.float32, params)
    zero = jax.tree.map(np.zeros_like, params)
    state = optimizer.init(params)
    _, state = optimizer.update(zero, state, params)
    update, _ = optimizer.update(zero, state, params)
    assert not update["bn1"]["scale"].any()
    assert not update["layer1_0"]["downsample_1"]["scale"].any()
    assert update["fc"]["bias"].all()


@pytest.mark.parametrize("name", ["finetune", "bit_finetune"])
def test_fine_tuning_is_of_named_images(name):
    size = "small," if name == "bit_finetune" else ""
    made = module_of(name).get_config(f"{size}folder=/flowers")
    assert (made.data.source, made.data.path) == ("folder", "/flowers")
    assert module_of(name).get_config(f"{size}tfds=digits").data.name == "digits"
    for wrong in ("", f"{size}folder=", f"{size}files=/flowers", "tiny,folder=/flowers"):
        with refused(f"configs/{name}.py"):
            module_of(name).get_config(wrong)
