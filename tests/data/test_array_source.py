"""Sources of examples from arrays in memory."""

import io

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import DataError


def test_arrays_of_one_or_many_sizes():
    draw = np.random.default_rng(0)
    same = draw.integers(0, 256, (5, 7, 6, 3)).astype(np.uint8)
    many = [draw.integers(0, 256, (n + 3, 5, 1)).astype(np.uint8) for n in range(5)]
    for images in (same, many):
        source = ArraySource(images, [0, 1, 2, 1, 0])
        assert source.class_names == ("0", "1", "2")
        read, labels, turns = source.read([4, 2])
        assert (labels.tolist(), turns) == ([0, 2], None)
        for got, expected in zip(read, (images[4], images[2]), strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(got)))
            np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))


@pytest.mark.parametrize(
    ("images", "labels", "key", "part"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "images", "float32"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], "images", "[4, 4]"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], "labels", "float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), [[0], [1]], "labels", "[2, 1]"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "labels", "1 for 2 images"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), "labels", "0 for 0 images"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "labels", "from -1 to 0"),
        (np.zeros((2, 0, 4, 3), np.uint8), [0, 1], "images", "[0, 4, 3]"),
        (
            [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8)],
            [0, 1],
            "images",
            "image 1",
        ),
        ([[1, 2], [3, 4]], [0, 1], "images", "[2]"),
    ],
)
def test_invalid_arrays_are_refused(images, labels, key, part):
    with refused(key, kind=DataError) as caught:
        ArraySource(images, labels)
    assert part in caught.value.problem


def test_labels_index_the_class_names():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert ArraySource(images, [0, 1], ["a", "b", "c"]).class_names == ("a", "b", "c")
    with refused("labels", kind=DataError) as caught:
        ArraySource(images, [0, 2], ["a", "b"])
    assert "1" in caught.value.allowed


def test_arrays_cannot_be_opened_by_a_setting():
    with refused("data.source", "python", DataError):
        open_source(Data(source="python"), train=True)
