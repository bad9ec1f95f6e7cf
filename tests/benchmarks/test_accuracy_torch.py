"""Training in PyTorch beside that of this package: same weights, same batches, and so the same losses."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, records_of

from benchmarks.accuracy import torch_run, torch_training
from flax_resnet.training.runs.folder import RunFolder

pytestmark = pytest.mark.parity

EPOCHS, STEPS = 3, 2
# At the rate of the paper, 0.1, rounding alone takes the third loss 1e-3 apart, as do two ways of convolving.
RECIPES = {
    "cifar_he2016": {
        "schedule.unit": "fraction",
        "schedule.milestones": "(0.5,0.75)",
        "optimizer.learning_rate": 0.001,
        "optimizer.nesterov": True,
    },
    "cifar_speedrun": {
        "model.widths": "(8,16,16)",
        "ema.lookahead": 2,
    },
}
# In six steps rounding takes resnet20 up to 3e-4 apart from PyTorch (seeds 5 to 9), with XLA's convolutions as with
# ours. What differs in earnest is above 1e-3 at once (the test of what is broken).
FURTHEST = {"resnet20": 5e-4, "airbench94": 1e-4}


@pytest.fixture(scope="module", params=RECIPES)
def ours(request, tmp_path_factory):
    """A run of this package on tiny images, every step recorded."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    for library in ("torch", "timm"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install '.[parity]'")
    root, draw = tmp_path_factory.mktemp("accuracy"), np.random.default_rng(0)
    for split, images in (("train", 24), ("test", 10)):
        for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                top, left = draw.integers(0, 395), draw.integers(0, 608)
                crop = Image.fromarray(image[top : top + 32, left : left + 32])
                crop.save(root / split / name / f"{number:02}.jpg", quality=92)
    command = [sys.executable, "-m", "flax_resnet.main", f"--config=configs/{request.param}.py"]
    command += [f"--workdir={root / 'run'}", "--compilation_cache=off"]
    overrides = {
        "data.source": "folder",
        "data.path": root,
        "data.limit": 40,
        "train.batch_size": 16,
        "train.epochs": EPOCHS,
        "train.seed": 5,
        "train.log_every": 1,
        **RECIPES[request.param],
    }
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    # One device, and no PyTorch beside TensorFlow: a process of its own.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "run"


def distances(split, ours, theirs):
    """The relative distances of the losses that both recorded."""
    pairs = zip(records_of(ours, split), records_of(theirs, split), strict=False)
    return [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in pairs]


def test_losses_are_those_of_this_package(ours, tmp_path):
    theirs = tmp_path / "run"
    config = RunFolder.at(ours).read_config()
    torch_run.train(config, theirs)
    train, limit = distances("train", ours, theirs), FURTHEST[config.model.name]
    assert train[0] < 1e-6
    assert max(train[:2]) < 1e-5, train
    assert max(train) < limit, train
    assert max(distances("test", ours, theirs)) < limit
    for split, count in (("train", EPOCHS * STEPS), ("test", EPOCHS)):
        pairs = list(zip(records_of(ours, split), records_of(theirs, split), strict=True))
        assert len(pairs) == count
        for a, b in pairs:
            for key in ("step", "epoch", "learning_rate", "count"):
                assert a.get(key) == b.get(key)
            assert a["top1"] == pytest.approx(b["top1"])
            if "ema_loss" in a:
                assert b["ema_loss"] == pytest.approx(a["ema_loss"], rel=limit)
    assert "final top-1" in (theirs / "summary.txt").read_text()


@pytest.mark.parametrize("broken", ["order", "augmentation", "momentum"])
def test_losses_tell_what_differs(ours, tmp_path, monkeypatch, broken):
    config = RunFolder.at(ours).read_config()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    if broken == "augmentation":
        monkeypatch.setattr(torch_training, "AUGMENT_STREAM", 3)
    elif broken == "order":
        make_sampler = torch_run.make_sampler
        monkeypatch.setattr(
            torch_run,
            "make_sampler",
            lambda source, config: dataclasses.replace(make_sampler(source, config), seed=6),
        )
    else:
        optimizer = dataclasses.replace(config.optimizer, momentum=0.5)
        config = dataclasses.replace(config, optimizer=optimizer)
    torch_run.train(config, tmp_path / "run")
    first, second = distances("train", ours, tmp_path / "run")
    assert (second if broken == "momentum" else first) > 1e-3
