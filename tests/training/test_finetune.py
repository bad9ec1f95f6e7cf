"""Fine-tuning from a run: settings and weights of the run, a fresh head, and the step that unfreezes each part."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from conftest import drawn, refused, saved_run

import flax_resnet
from flax_resnet import create_model, main
from flax_resnet.cli import preview
from flax_resnet.cli.convert import export_run
from flax_resnet.config import freeze
from flax_resnet.config.plan import Plan, plan, planned_optimizer
from flax_resnet.errors import ConfigError
from flax_resnet.training import sharding
from flax_resnet.training.pretrained import warm_started
from flax_resnet.training.state import build_model, initial_state

PRETRAINED = {
    "widths": [4, 8, 16, 32],
    "depths": [1, 1, 1, 1],
    "stem": "cifar",
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run with a non-default network, image size and normalisation, and with averaged weights."""
    sections = {
        "model": {"name": "resnet18", **PRETRAINED},
        "augment": {"mean": [0.305] * 3, "std": [0.376] * 3},
        "ema": {"decay": 0.5},
    }
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return saved_run(folder, sections, [str(number) for number in range(10)])


def finetune(pretrained, photographs, workdir, cache_dir, *flags):
    return main.main(
        [
            f"--config=configs/finetune.py:folder={photographs}",
            f"--workdir={workdir}",
            "--noreport",
            f"--config.model.pretrained={pretrained}",
            f"--compilation_cache={cache_dir}",
            "--config.train.batch_size=8",
            "--config.train.epochs=3",
            *flags,
        ]
    )


def differing(one, other):
    """Return the names of the parameters that differ."""
    same = jax.tree.map(np.array_equal, one, other)
    leaves = jax.tree.leaves_with_path(same)
    return {"/".join(part.key for part in path) for path, equal in leaves if not equal}


@pytest.mark.slow
def test_a_run_is_fine_tuned_on_other_classes(pretrained, photographs, tmp_path, cache_dir, capfd):
    workdir, source = tmp_path / "tuned", tmp_path / "source"
    shutil.copytree(pretrained, source)
    stays = [
        "--config.model.norm=frozen",
        "--config.schedule.unit=epochs",
        "--config.optimizer.unfreeze_at=(('^(?!fc/)',2.0),)",
    ]
    assert finetune(source, photographs, workdir, cache_dir, *stays) == 0
    said = capfd.readouterr().err
    assert "a fresh head of 2 classes in place of its 10" in said
    assert "learning begins for ^(?!fc/) at 2" in said
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["name"] == "resnet18"
    assert {key: config["model"][key] for key in PRETRAINED} == PRETRAINED
    assert config["data"]["image_size"] == 8
    assert config["augment"]["mean"] == [0.305] * 3

    begun = flax_resnet.load(source).variables["params"]  # the averaged weights
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    frozen, thawed = (flax_resnet.load(workdir, step).variables for step in steps[-2:])
    assert set(differing(frozen["params"], begun)) == {"fc/kernel", "fc/bias"}
    assert "conv1/kernel" in differing(thawed["params"], begun)
    assert flax_resnet.load(workdir).predict([photographs / "china" / "0.jpg"]).labels.shape == (1,)

    shutil.rmtree(source)  # resuming does not need the pretrained run
    more = "--config.train.epochs=4"
    assert finetune(source, photographs, workdir, cache_dir, *stays, more) == 0


@pytest.mark.parametrize("kind", ["run", "file"])
def test_network_size_and_normalisation_come_from_the_weights(
    pretrained, photographs, tmp_path, capsys, kind
):
    weights = pretrained
    if kind == "file":
        weights = tmp_path / "weights.safetensors"
        export_run(str(pretrained), str(weights))
    command = [
        f"--config=configs/finetune.py:folder={photographs}",
        f"--config.model.pretrained={weights}",
        "--config.train.batch_size=8",
        "--config.model.drop_path=0.1",
        "--dry_run",
    ]
    assert main.main(command) == 0
    said = capsys.readouterr().err
    for words in (
        "2 classes, 8x8 px",
        "resnet18 (depths (1, 1, 1, 1), widths (4, 8, 16, 32), stem cifar, drop_path 0.1)",
        "learning begins for ^(?!(fc|classifier_6)/) at 0.1",
        "a fresh head of 2 classes in place of its 10",
    ):
        assert words in said
    assert "was trained with" not in said  # no warning: the normalisation is the same


def test_preview_takes_size_and_normalisation_from_the_weights(pretrained, photographs, tmp_path):
    output = tmp_path / "batch.png"
    command = [
        f"--config=configs/finetune.py:folder={photographs}",
        f"--config.model.pretrained={pretrained}",
        "--config.train.batch_size=8",
        f"--output={output}",
    ]
    assert preview.main(command) == 0
    assert output.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argument", "flags", "parts"),
    [
        ("folder={folder}", [], ["model.name=''", "model.pretrained"]),
        ("folder=", [], ["configs/finetune.py='folder='"]),
        ("files={folder}", [], ["configs/finetune.py='files={folder}'"]),
        (
            "folder={folder}",
            ["--config.model.pretrained=resnet50.a1", "--config.model.name=resnet18"],
            ["model.pretrained='resnet50.a1'", "resnet50,", "model.name='resnet18'"],
        ),
        (
            "folder={folder}",
            ["--config.model.pretrained=weights.pth"],
            ["model.name=''", "model.pretrained='weights.pth'"],
        ),
        (
            "folder={folder}",
            ["--config.model.pretrained={run}", "--config.model.name=resnet50"],
            ["model.pretrained='{run}'", "resnet18,", "model.name='resnet50'"],
        ),
        (
            "folder={folder}",
            ["--config.model.pretrained={run}", "--config.optimizer.unfreeze_at=(('fc/',20.0),)"],
            ["optimizer.unfreeze_at=('fc/', 20.0)", "20 steps"],
        ),
    ],
)
def test_invalid_settings_are_one_line(
    pretrained, photographs, tmp_path, capsys, argument, flags, parts
):
    places = {"folder": photographs, "run": pretrained}
    command = [f"--config=configs/finetune.py:{argument.format(**places)}"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.train.batch_size=8"]
    code = main.main(command + [flag.format(**places) for flag in flags])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2, error
    assert len(error) == 1
    first, *others = (part.format(**places) for part in parts)
    assert first in error[0].removeprefix("error: ").split(": ")[0]
    for part in others:
        assert part in error[0]
    assert not (tmp_path / "run").exists()


def test_settings_without_a_value_need_weights():
    for key, value in (("data.image_size", 0), ("augment.std", ())):
        section, name = key.split(".")
        with refused(key, value, ConfigError) as error:
            freeze({section: {name: value}})
        assert "model.pretrained" in error.value.cure


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw", "lamb", "muon"])
def test_a_parameter_starts_to_learn_at_its_unfreeze_step(name):
    """It is frozen before that step. The size of its first update depends on the optimizer."""
    decay = (
        1e-12 if name == "lars" else 0.0
    )  # LARS adapts the rate only of parameters with weight decay
    config = freeze(
        {
            "model": {"name": "resnet20", "depths": (1, 1, 1)},
            "optimizer": {
                "name": name,
                "unfreeze_at": (("^fc/", 0.0), ("", 2.0)),
                "weight_decay": decay,
            },
            "schedule": {"name": "constant", "unit": "steps"},
            "train": {"batch_size": 10},
        }
    )
    model = create_model("resnet20", num_classes=10, depths=(1, 1, 1))
    made = plan(config, num_train=100, num_eval=1, num_classes=10)
    optimizer = planned_optimizer(config, made, model)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    params = drawn(variables["params"])
    grads = jax.tree.map(lambda leaf: 0.1 * leaf + 0.01, params)
    state, trail = optimizer.init(params), [params]
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(grads, state, trail[-1])
        trail.append(optax.apply_updates(trail[-1], updates))
    head = {"fc/kernel", "fc/bias"}
    assert differing(trail[0], trail[1]) == differing(trail[1], trail[2]) == head
    everything = set(differing(jax.tree.map(np.zeros_like, params), params))
    assert differing(trail[2], trail[3]) == everything
    moved = np.asarray(trail[3]["conv1"]["kernel"]) - np.asarray(trail[2]["conv1"]["kernel"])
    grad = np.asarray(grads["conv1"]["kernel"])
    if name == "sgd":  # momentum over three gradients
        np.testing.assert_allclose(moved, -0.1 * (1 + 0.9 + 0.81) * grad, atol=1e-6)
    if name == "adamw":  # all gradients are equal, so the update is the sign
        np.testing.assert_allclose(moved, -0.1 * np.sign(grad), atol=1e-4)
    if name == "lars":  # momentum over updates; this is the first update
        norms = np.linalg.norm(trail[2]["conv1"]["kernel"]) / np.linalg.norm(grad)
        np.testing.assert_allclose(moved, -0.1 * 0.001 * norms * grad, rtol=1e-3, atol=1e-7)


def test_the_optimizer_starts_from_pretrained_weights():
    """Schedule-Free SGD keeps the iterate z, which is the weights at the start."""
    sections = {
        "model": {"name": "resnet20", "depths": (1, 1, 1)},
        "optimizer": {"name": "schedule_free_sgd"},
    }
    config = freeze(sections)
    model, mesh = build_model(config, 10), sharding.make_mesh()
    optimizer = planned_optimizer(config, Plan.nominal(10), model)
    state = initial_state(config, model, optimizer, mesh)
    weights = {name: drawn(getattr(state, name), seed=1) for name in ("params", "batch_stats")}
    start = warm_started(state, weights, optimizer, mesh)
    jax.tree.map(np.testing.assert_array_equal, start.params, weights["params"])
    jax.tree.map(np.testing.assert_array_equal, start.opt_state.z, start.params)
