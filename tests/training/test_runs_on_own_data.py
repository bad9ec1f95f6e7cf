"""Runs on a user's own data: arrays from Python, folders of photographs, and data that change."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import refused, saved, saved_run

import flax_resnet
from flax_resnet import main
from flax_resnet.config import freeze
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import DataError
from flax_resnet.training import experiment
from flax_resnet.training.train import train


@pytest.mark.slow
def test_changed_data_are_refused_and_a_forced_resume_forgets_bad_images(
    photographs, tmp_path, capsys
):
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source
    from flax_resnet.data.sampling import EpochSampler

    data = Data(source="folder", path=str(photographs), eval_fraction=0.1)
    source = open_source(data, train=True)
    index = int(EpochSampler(len(source), 0, subset_size=8).used[0])
    victim = pathlib.Path(source.describe(index))
    good = victim.read_bytes()
    victim.write_bytes(b"\xff\xd8\xff broken")
    arguments = [
        f"--config=resnet18:folder={photographs}", f"--workdir={tmp_path / 'run'}",
        "--config.model.widths=(4,8,16,32)", "--config.model.depths=(1,1,1,1)",
        "--config.data.image_size=32", "--config.train.batch_size=8", "--config.train.epochs=1",
        "--config.schedule.warmup=0", "--config.data.limit=8", "--config.data.eval_fraction=0.1", "--noreport",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    assert saved(tmp_path / "run", 1)["bad_images"] == {str(index): 0}
    victim.write_bytes(good)
    for number in range(30):
        shutil.copy(victim, photographs / "flower" / f"more{number}.jpg")
    more = [*arguments, "--config.train.epochs=2"]
    capsys.readouterr()
    assert main.main(more) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'run'}: ")
    assert "images: " in line
    assert main.main([*more, "--resume=force"]) == 0
    assert saved(tmp_path / "run", 2)["bad_images"] == {}


def test_training_on_arrays_from_python(tmp_path):

    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 64)
    images = (draw.integers(0, 100, (64, 8, 8, 3)) + 150 * labels[:, None, None, None]).astype(
        np.uint8
    )
    source = ArraySource(images, labels, ("dark", "light"))
    config = freeze(
        {
            "data": {"source": "python", "image_size": 8, "limit": 48, "class_balanced": True},
            "model": {"stem": "cifar", "widths": (4, 4, 4, 4), "depths": (1, 1, 1, 1)},
            "train": {"batch_size": 16, "epochs": 8},
            "optimizer": {"learning_rate": 0.05},
        }
    )
    result = train(config, tmp_path / "run", train_source=source, eval_source=source)
    assert result.step == 24
    assert result.final_top1 > 0.9
    assert flax_resnet.load(tmp_path / "run").class_names == ("dark", "light")
    from flax_resnet.training.experiment import make_sampler

    np.testing.assert_array_equal(make_sampler(source, config).labels, labels)
    other = ArraySource(images, 1 - labels, ("light", "dark"))
    tfds = dataclasses.replace(config, data=config.data.but(source="tfds"))
    for wrong, sources, key, value in (
        (config, {}, "data.source", "python"),
        (config, {"train_source": source}, "data.source", "python"),
        (tfds, {"train_source": source, "eval_source": source}, "data.source", "tfds"),
        (config, {"train_source": source, "eval_source": other}, "data.eval_split", "test"),
    ):
        with refused(key, value):
            train(wrong, tmp_path / "other", **sources)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_photographs_from_training_to_prediction(photographs, tmp_path, cache_dir, capsys):
    workdir = tmp_path / "run"
    arguments = [
        f"--config=resnet18:folder={photographs}", f"--workdir={workdir}", "--config.model.widths=(4,8,16,32)",
        "--config.data.image_size=32", "--config.train.batch_size=8", "--config.train.epochs=2",
        "--config.schedule.warmup=0", "--config.data.eval_fraction=0.3",
        f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    (photographs / "china" / "1.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert main.main(arguments) == 0
    assert f"cannot decode {photographs / 'china' / '1.jpg'}" in capsys.readouterr().err
    classifier = flax_resnet.load(workdir)
    files = sorted((photographs / "flower").iterdir())
    assert classifier.predict(files).labels.shape == (6,)
    assert classifier.class_names == ("china", "flower")

    # predict() resizes with Pillow, evaluation in a run with TensorFlow. The probabilities are nearly the same.
    from flax_resnet.data.decode import evaluation_pixels

    data = classifier.config.data
    theirs = [evaluation_pixels(f.read_bytes(), data).numpy() for f in files]
    whole = data.but(eval_crop="resize")  # the arrays are already cropped
    as_cut = dataclasses.replace(
        classifier, config=dataclasses.replace(classifier.config, data=whole)
    )
    expected = as_cut.predict(theirs).probabilities
    np.testing.assert_allclose(classifier.predict(files).probabilities, expected, atol=1e-2)


def test_class_weights_come_from_the_examples_to_train_on_and_reach_the_loss(tmp_path):
    from flax_resnet.training.experiment import build_experiment, open_splits
    from flax_resnet.training.runs.folder import RunFolder

    labels = np.repeat([0, 1], [8, 56])
    source = ArraySource(np.zeros((64, 8, 8, 3), np.uint8), labels, ("rare", "common"))
    sections = {
        "data": {"source": "python", "image_size": 8, "limit": 32},
        "model": {"stem": "cifar", "widths": (4, 4, 4, 4), "depths": (1, 1, 1, 1)},
        "train": {"batch_size": 16, "epochs": 1, "log_every": 1},
    }
    config = freeze(sections | {"loss": {"class_weights": "balanced"}})
    splits = open_splits(config, source, source)
    used = labels[splits.sampler.used]
    expected = 16 / np.bincount(used)
    np.testing.assert_allclose(build_experiment(config, splits).plan.class_weights, expected)

    common = ArraySource(np.zeros((32, 8, 8, 3), np.uint8), np.ones(32, int), source.class_names)
    config = freeze(sections | {"loss": {"class_weights": "given", "weight_per_class": (1.0, 0.0)}})
    train(config, tmp_path / "run", train_source=common, eval_source=common)
    records = RunFolder.at(tmp_path / "run").read_records()
    losses = [r["loss"] for r in records if r["split"] == "train"]
    assert losses == [0.0, 0.0]


class Unlabelled(ArraySource):
    """A source without labels from an index on, as the hidden test splits of TFDS have them."""

    first = 0

    def labels(self):
        return np.where(np.arange(len(self)) >= self.first, -1, super().labels()).astype(np.int32)

    def read(self, indices):
        return super().read(indices)._replace(labels=self.labels()[np.asarray(indices)])


def sources(count, kind=Unlabelled):
    images = np.zeros((count, 8, 8, 3), np.uint8)
    return kind(images, np.arange(count) % 2, ("a", "b"))


SMALL = {
    "data": {"source": "python", "image_size": 8},
    "model": {"stem": "cifar", "widths": (4, 4, 4, 4), "depths": (1, 1, 1, 1)},
    "train": {"batch_size": 8, "epochs": 1, "feed": "streaming"},
}


@pytest.mark.parametrize("side", ["train", "eval"])
def test_splits_without_labels_are_refused_before_anything_is_compiled(side, tmp_path, monkeypatch):
    labelled, hidden = sources(16, ArraySource), sources(16)
    pair = {"train_source": labelled, "eval_source": labelled, f"{side}_source": hidden}
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with refused("image 0 of the arrays", kind=DataError):
        train(freeze(SMALL), tmp_path / "run", **pair)
    assert not (tmp_path / "run").exists()


def test_a_label_is_checked_whenever_it_is_read(tmp_path, monkeypatch):
    """The sample that is checked first has labels; another example has none."""
    hidden, labelled = sources(640), sources(16, ArraySource)
    monkeypatch.setattr(hidden, "first", 639)
    read = {index: label for index, label in enumerate(hidden.labels())}
    assert read[639] == -1
    monkeypatch.setattr(experiment, "check_first_labels", lambda source: None)
    with refused("image 639 of the arrays", kind=DataError):
        train(freeze(SMALL), tmp_path / "run", train_source=hidden, eval_source=labelled)


def test_labels_of_no_class_are_refused(tmp_path):
    odd = sources(16, ArraySource)
    odd.class_names = ("a",)
    with refused("image 1 of the arrays", kind=DataError) as caught:
        train(freeze(SMALL), tmp_path / "run", train_source=odd, eval_source=odd)
    assert caught.value.allowed == "labelled from 0 to 0"


def test_images_without_labels_teach_the_outputs_of_a_teacher(tmp_path):
    hidden, labelled = sources(16), sources(16, ArraySource)
    teacher = saved_run(tmp_path / "teacher", {"model": SMALL["model"]}, "ab")
    for weight, code in ((1.0, None), (0.5, DataError)):
        config = freeze(SMALL | {"distill": {"teacher": str(teacher), "weight": weight}})
        own = {"train_source": hidden, "eval_source": labelled}
        if code:
            with refused("image 0 of the arrays", kind=code):
                train(config, tmp_path / f"run{weight}", **own)
        else:
            assert train(config, tmp_path / f"run{weight}", **own).step == 2
