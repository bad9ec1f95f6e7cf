"""`Classifier.predict`: unreadable images, and memory that does not grow with the number of images."""

import dataclasses
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from flax_resnet.errors import DataError

BOMB = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)


@pytest.fixture
def spoiled(pictures):
    """The paths of three photographs and three files that are no images."""
    folder = pictures[0].parent
    bomb = struct.pack(">I", 13) + BOMB + struct.pack(">I", zlib.crc32(BOMB))
    contents = {
        "cut.jpg": pictures[0].read_bytes()[:-500],
        "bomb.png": b"\x89PNG\r\n\x1a\n" + bomb + bomb,
        "text.png": b"text",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [pictures[0], *(folder / name for name in contents), *pictures[1:]]


def test_an_unreadable_image_is_refused_with_its_name(untrained, spoiled):
    for bad in spoiled[1:4]:
        with refused(bad, kind=DataError):
            untrained.predict([spoiled[0], bad])
        with refused("image 1", kind=DataError):
            untrained.predict([spoiled[0], bad.read_bytes()])
    with refused("nowhere.jpg", kind=DataError):
        untrained.predict("nowhere.jpg")
    with refused("image 2", kind=DataError):
        untrained.predict([*spoiled[4:], np.zeros((8, 8, 4), np.uint8)], batch_size=1)


@pytest.mark.parametrize(
    "error",
    [SyntaxError("a"), RuntimeError("b"), struct.error("c"), ZeroDivisionError("d"), IndexError()],
)
def test_any_error_of_pillow_is_refused_with_the_name(untrained, pictures, monkeypatch, error):
    def convert(self, mode):
        raise error

    monkeypatch.setattr(Image.Image, "convert", convert)
    with refused(pictures[0], kind=DataError):
        untrained.predict(pictures)
    with Image.open(pictures[0]) as image, refused("image 0", kind=DataError):
        untrained.predict(image)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_unreadable_images_are_skipped_and_listed(untrained, spoiled, batch_size):
    good = untrained.predict([spoiled[0], *spoiled[4:]])
    assert good.unreadable == ()
    got = untrained.predict(iter(spoiled), batch_size=batch_size, skip_unreadable=True)
    assert [(i, name) for i, name, _ in got.unreadable] == [(i, str(spoiled[i])) for i in (1, 2, 3)]
    assert all(problem for _, _, problem in got.unreadable)
    np.testing.assert_array_equal(got.labels[1:4], -1)
    assert np.isnan(got.probabilities[1:4]).all()
    np.testing.assert_array_equal(got.labels[[0, 4, 5]], good.labels)
    np.testing.assert_allclose(got.probabilities[[0, 4, 5]], good.probabilities, atol=1e-6)
    none = untrained.predict(spoiled[1:4], skip_unreadable=True)
    assert (len(none.unreadable), none.probabilities.shape) == (3, (3, 3))


def test_memory_is_bounded_by_a_batch(untrained):
    data = untrained.config.data.but(image_size=64)
    classifier = dataclasses.replace(
        untrained, config=dataclasses.replace(untrained.config, data=data)
    )
    image = Image.new("RGB", (80, 80))
    classifier.predict([image] * 8, batch_size=4)  # compiles
    tracemalloc.start()
    count = 600
    got = classifier.predict((image for _ in range(count)), batch_size=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(got.labels) == count
    assert peak < count * 64 * 64 * 3 / 4  # bytes of all prepared images: 7.4 million
