"""The predictions for a split: those of `evaluate` and `predict`; what cannot be judged is listed."""

import dataclasses

import numpy as np
import pytest
from conftest import refused, saved_run
from untrained import random_source

from flax_resnet.augment.augment_section import Augment
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import DataError, WeightsError
from flax_resnet.inference import judged_split
from flax_resnet.inference.judged_split import input_images, judge_split, why_unreadable

SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}


@pytest.fixture(scope="module")
def flipped(untrained):
    """The untrained network, evaluated with mirrored views."""
    augment = dataclasses.replace(Augment(), eval_flip=True)
    config = dataclasses.replace(untrained.config, augment=augment)
    return dataclasses.replace(untrained, config=config)


@pytest.fixture(scope="module")
def judged(flipped):
    source, images, labels = random_source(50, classes=3)
    source.class_names = flipped.class_names
    return judge_split(flipped, source, batch_size=16, where="test"), images, labels


def test_the_predictions_are_those_of_predict(judged, flipped):
    split, images, labels = judged
    expected = flipped.predict(images)
    np.testing.assert_array_equal(split.indices, np.arange(50))
    np.testing.assert_array_equal(split.labels, labels)
    np.testing.assert_array_equal(split.predictions, expected.labels)
    rows = np.arange(50)
    own = expected.probabilities[rows, labels]
    np.testing.assert_allclose(split.confidences, expected.probabilities.max(1), atol=1e-5)
    np.testing.assert_allclose(split.label_probabilities, own, atol=1e-5)
    features = flipped.features(images)["pre_logits"]
    np.testing.assert_array_equal(split.kept, rows)
    np.testing.assert_allclose(split.features, features, rtol=2e-3, atol=1e-3)
    assert split.unreadable == split.unlabelled == ()


def test_features_of_a_large_split_are_kept_for_some(flipped, monkeypatch, judged):
    monkeypatch.setattr(judged_split, "FEATURE_BYTES", 50 * 32 * 2 // 3)
    source, _, _ = random_source(50, classes=3)
    source.class_names = flipped.class_names
    split = judge_split(flipped, source, batch_size=16, where="test")
    assert 10 < len(split.kept) < 20
    assert split.features.nbytes <= judged_split.FEATURE_BYTES
    np.testing.assert_array_equal(split.features, judged[0].features[split.kept])
    np.testing.assert_array_equal(split.predictions, judged[0].predictions)


class WithoutLabels:
    """A source some of whose examples have no label."""

    def __init__(self, source, missing):
        self._source, self._missing = source, missing
        self.class_names, self.orientations = source.class_names, source.orientations

    def __len__(self):
        return len(self._source)

    def read(self, indices):
        records = self._source.read(indices)
        return records._replace(
            labels=np.where(np.isin(indices, self._missing), -1, records.labels)
        )

    def describe(self, index):
        return self._source.describe(index)


def test_examples_without_a_label_are_listed_and_not_counted(flipped, judged):
    source, _, labels = random_source(50, classes=3)
    # Other names in another order: labels are mapped by name.
    renamed = ArraySource(
        np.stack([np.zeros((8, 8, 3), np.uint8)] * 50), labels, list(flipped.class_names[::-1])
    )
    source.class_names = flipped.class_names
    split = judge_split(flipped, WithoutLabels(source, [3, 40]), batch_size=16, where="test")
    assert split.unlabelled == (3, 40)
    rest = np.setdiff1d(np.arange(50), [3, 40])
    np.testing.assert_array_equal(split.indices, rest)
    np.testing.assert_array_equal(split.predictions, judged[0].predictions[rest])
    mapped = judge_split(flipped, WithoutLabels(renamed, [0]), batch_size=16, where="test")
    np.testing.assert_array_equal(mapped.labels, 2 - labels[1:])
    nothing = judge_split(flipped, WithoutLabels(source, range(50)), batch_size=16, where="test")
    assert len(nothing.unlabelled) == 50
    assert len(nothing.labels) == 0


def test_weights_that_are_not_finite_are_refused(flipped):
    import jax

    broken = dataclasses.replace(
        flipped, variables=jax.tree.map(lambda leaf: leaf * np.nan, flipped.variables)
    )
    source, _, _ = random_source(8, classes=3)
    source.class_names = flipped.class_names
    with refused("weights", kind=WeightsError):
        judge_split(broken, source, batch_size=8, where="test")


def test_unreadable_files_are_listed_with_their_reason(photographs, tmp_path):
    from flax_resnet.inference.classifier import load

    data = {"source": "folder", "path": str(photographs), "eval_fraction": 0.99, "image_size": 16}
    run = saved_run(tmp_path / "run", {"data": data, "model": SHAPE}, ["china", "flower"], step=3)
    classifier, source = load(run), open_source(Data(**data), train=False)
    for index in (1, 4):
        with open(source.describe(index), "wb") as file:
            file.write(b"\xff\xd8\xff broken")
    split = judge_split(classifier, source, batch_size=8, where="test")
    assert split.unreadable == (1, 4)
    assert set(split.indices.tolist()) == set(range(len(source))) - {1, 4}
    files = [source.describe(index) for index in split.indices.tolist()]
    np.testing.assert_array_equal(split.predictions, classifier.predict(files).labels)
    reason = why_unreadable(source, 1)
    assert reason
    assert "\n" not in reason
    with refused(source.describe(4), kind=DataError):
        input_images(classifier, source, [4])
    for index in split.indices.tolist():
        with open(source.describe(index), "wb") as file:
            file.write(b"broken")
    with refused("data.source", kind=DataError):
        judge_split(classifier, source, batch_size=8, where="test")
