"""The features of a split: those of the classifier, for any batch and number of images."""

import jax
import numpy as np
import pytest
from conftest import refused
from untrained import random_source

from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import DataError, WeightsError
from flax_resnet.inference import features
from flax_resnet.ops import dispatch


def test_features_are_compiled_with_the_options_of_the_platform(untrained, monkeypatch):
    monkeypatch.setattr(dispatch, "compiler_options", lambda: {"no_such_option": "1"})
    source, _, _ = random_source(4, classes=3)
    given = untrained.model, untrained.variables, untrained.config, source
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        features.compute_features(*given, batch_size=4)


def test_features_are_those_of_the_classifier(untrained):
    classifier = untrained
    source, images, labels = random_source(21)  # 8 devices, batches of 16: 11 rows of padding
    found = features.compute_features(
        classifier.model, classifier.variables, classifier.config, source, batch_size=12
    )
    expected = classifier.features(images)["pre_logits"]
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(found.labels, labels)
    some = features.compute_features(
        classifier.model, classifier.variables, classifier.config, source, batch_size=8, limit=10
    )
    assert some.vectors.shape == (10, 32)
    matches = np.abs(some.vectors[:, None] - expected[None]).max(axis=2).argmin(axis=1)
    assert (np.diff(matches) > 0).all()  # ten different ones, in order, and not the first ten
    assert list(matches) != list(range(10))
    np.testing.assert_array_equal(some.labels, labels[matches])


class HalfLabelled(ArraySource):
    """A source whose images at odd indices have no label, which TFDS marks by -1."""

    def labels(self):
        return np.where(np.arange(len(self)) % 2, -1, super().labels()).astype(np.int32)

    def read(self, indices):
        return super().read(indices)._replace(labels=self.labels()[np.asarray(indices)])


def test_features_without_a_label_or_a_number_are_refused(untrained):
    classifier = untrained
    source, images, labels = random_source(8)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, classifier.variables)
    with refused("weights", ..., WeightsError) as caught:
        features.compute_features(
            classifier.model,
            broken,
            classifier.config,
            source,
            batch_size=8,
            description="features of train",
        )
    assert "features of train" in caught.value.problem
    source = HalfLabelled(images, labels, source.class_names)
    with refused("image 1 of the arrays", kind=DataError):
        features.compute_features(
            classifier.model, classifier.variables, classifier.config, source, batch_size=8
        )


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch, capsys, untrained):
    classifier, (source, *_) = untrained, random_source(8)
    arguments = (classifier.model, classifier.variables, classifier.config, source)
    features.compute_features(*arguments, batch_size=8)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    features.compute_features(*arguments, batch_size=8, description="features of mine")
    assert "features of mine" in capsys.readouterr().err
