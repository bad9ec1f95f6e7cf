"""Pages of runs that are out of the ordinary: a thousand classes, no labels, grey images, one class."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from untrained import initial

from flax_resnet import create_model
from flax_resnet.cli.page.run_report import RunReport
from flax_resnet.cli.report import write_report
from flax_resnet.config import freeze
from flax_resnet.data.records import Records
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.judged_split import JudgedSplit, judge_split
from flax_resnet.training.runs.metadata import RunMetadata

pytestmark = pytest.mark.slow
SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
LARGEST = 5 << 20


class Noise:
    """Images of noise, which compress worst; every 64th is the same."""

    orientations = False

    def __init__(self, names, size, count, labels):
        draw = np.random.default_rng(0)
        self.class_names, self._labels, self._count = names, labels, count
        self._encoded = [
            self._png(draw.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(64)
        ]

    @staticmethod
    def _png(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def __len__(self):
        return self._count

    def read(self, indices):
        labels = self._labels[np.asarray(indices)].astype(np.int32)
        return Records([self._encoded[int(index) % 64] for index in indices], labels)

    def describe(self, index):
        return f"/a/long/path/of/folders/that/goes/on/and/on/{index:08}.jpg"


def network(names, size, channels=3):
    model = create_model(**SHAPE, num_classes=len(names), in_channels=channels)
    variables = initial(model) if channels == 3 else None
    if channels == 1:
        import jax
        import jax.numpy as jnp

        variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False)
    sections = {"model": {**SHAPE, "in_channels": channels}, "data": {"image_size": size}}
    if channels == 1:
        sections["augment"] = {"mean": (0.5,), "std": (0.5,)}
    return Classifier(model, variables, names, freeze(sections), step=7)


def written(folder, classifier, source, split, records=()):
    metadata = RunMetadata(
        dataclasses.asdict(classifier.config), classifier.class_names, len(classifier.class_names)
    )
    report = RunReport(folder, classifier, metadata, list(records), source, split, "test")
    page, table, picture = write_report(report, folder)
    assert Image.open(picture).size[0] > 1000
    assert page.stat().st_size < LARGEST
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + len(classifier.class_names)
    return page.read_text(encoding="utf-8")


def test_a_thousand_classes_of_noise_stay_below_five_megabytes(tmp_path):
    names = tuple(f"a rather long name of class number {n}" for n in range(1000))
    draw, count = np.random.default_rng(0), 5000
    labels = draw.integers(0, 1000, count).astype(np.int32)
    # A few pairs are confused often, so that the page is full.
    predictions = np.where(draw.random(count) < 0.5, labels, (labels + 1) % 8).astype(np.int32)
    split = JudgedSplit(
        names,
        np.arange(count, dtype=np.int32),
        labels,
        predictions,
        draw.uniform(0.2, 1, count).astype(np.float32),
        draw.uniform(0, 0.2, count).astype(np.float32),
        np.arange(count, dtype=np.int32),
        np.eye(8, dtype=np.float16)[predictions % 8],
        unreadable=tuple(range(3000, 5000)),
    )
    records = [
        {
            "step": s,
            "epoch": s / 9,
            "split": "train",
            "loss": 1.0,
            "top1": 0.5,
            "learning_rate": 0.1,
        }
        for s in range(1, 30_000)
    ]
    source = Noise(names, 224, count, labels)
    page = written(tmp_path, network(names, 224), source, split, records)
    assert 'id="confusion"' not in page  # a million cells
    assert page.count("<img") > 48 * 2 + 40
    assert page.count('data-search="a rather long name') >= 1000


@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_of_grey_images_without_labels(tmp_path, channels):
    names = ("only",) if channels == 1 else ("one", "two")
    source = Noise(names, 16, 20, np.full(20, -1))
    classifier = network(names, 16, channels)
    split = judge_split(classifier, source, batch_size=8, where="test")
    assert len(split.unlabelled) == 20
    page = written(tmp_path, classifier, source, split)
    assert ">nan" not in page
    source = Noise(names, 16, 20, np.arange(20) % len(names))
    split = judge_split(classifier, source, batch_size=8, where="test")
    page = written(tmp_path, classifier, source, split)
    assert ">nan" not in page
    assert page.count("Grad-CAM of") > 5


def test_a_map_of_one_position_is_left_out(tmp_path):
    names = ("one", "two")
    source = Noise(names, 2, 20, np.arange(20) % 2)
    classifier = network(names, 2)
    split = judge_split(classifier, source, batch_size=8, where="test")
    page = written(tmp_path, classifier, source, split)
    assert page.count("<img") > 20
    assert "Grad-CAM of" not in page
