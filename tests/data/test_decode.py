import subprocess
import sys

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data import decode
from flax_resnet.data.data_section import Data
from flax_resnet.data.images import prepare
from flax_resnet.errors import DataError


def test_random_windows_follow_torchvisions_rule():
    import tensorflow as tf

    shape = tf.constant([300, 200])
    seeds = tf.data.Dataset.range(2000)  # a compiled tf.data map; a Python loop takes half a minute
    windows = seeds.map(lambda i: decode.random_window(shape, (0.08, 1.0), (0.75, 4 / 3), [1, i]))
    boxes = np.stack(list(windows.as_numpy_iterator()))
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 200).all()
    area, aspect = height * width / 60_000, width / height
    assert 0.07 < area.min() < 0.10
    assert area.max() > 0.8
    assert 0.74 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.35
    small = area < 0.4  # no draw of this size is rejected, so the area is uniform
    assert abs(area[small].mean() - 0.24) < 0.01
    assert abs(np.log(aspect[small]).mean()) < 0.02
    fallback = decode.random_window(
        tf.constant([10, 400]), (1.0, 1.0), (0.75, 4 / 3), tf.constant([0, 0])
    )
    np.testing.assert_array_equal(fallback, [0, 193, 10, 13])


def test_pillow_and_tensorflow_see_the_same_pixels(photographs):
    for data in (
        Data(image_size=32, eval_crop="center"),
        Data(image_size=48, eval_crop="resize", interpolation="bicubic"),
        Data(image_size=300, eval_crop="center", eval_crop_fraction=1.0),
    ):
        for file in sorted(photographs.rglob("*.jpg"))[:4]:
            theirs = decode.evaluation_pixels(file.read_bytes(), data).numpy()
            ours = prepare([file], data)[0]
            difference = np.abs(ours.astype(int) - theirs)
            # Pillow rounds between the two passes of resizing, TensorFlow does not.
            assert difference.mean() < 0.2, (data.image_size, file)
            assert (difference > 1).mean() < 1e-3


def test_prepare_takes_arrays_of_any_size_and_refuses_other_dtypes_and_channels():
    data = Data(image_size=8)
    assert prepare(np.zeros((2, 20, 30, 3), np.uint8), data).shape == (2, 8, 8, 3)
    assert prepare([np.zeros((5, 6, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)], data).shape == (
        2,
        8,
        8,
        3,
    )
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 2), np.uint8)):
        with refused("image 0", kind=DataError) as caught:
            prepare(wrong, data)
        assert str(list(wrong.shape[1:])) in caught.value.problem
        assert wrong.dtype.name in caught.value.problem
    with refused("nowhere.jpg", kind=DataError):
        prepare(["nowhere.jpg"], data)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_decoding_a_window_equals_cropping_the_whole_image(photographs, suffix):
    """The pixels are equal to those of decoding the whole image and cropping it."""
    import io

    import tensorflow as tf

    file = next(photographs.rglob("*.jpg"))
    image = Image.open(file)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    stored = file.read_bytes() if suffix == "jpg" else buffer.getvalue()
    data = Data(image_size=20, train_crop="random_resized", train_antialias=True)
    for number in range(8):
        seed = tf.constant([3, number], tf.int64)
        shape = tf.constant(image.size[::-1])
        top, left, height, width = decode.random_window(
            shape, data.crop_area, data.crop_aspect, seed
        ).numpy()
        cut = image.crop((left, top, left + width, top + height)).resize(
            (20, 20), Image.Resampling.BILINEAR
        )
        whole = Data(**{**data.__dict__, "reduced_decode": False})
        got = decode.training_pixels(stored, whole, seed=seed).numpy().astype(int)
        # At the edge of the window, libjpeg interpolates colour only from pixels inside.
        assert np.abs(got - np.asarray(cut)).mean() < (0.2 if suffix == "png" else 0.6)
        reduced = decode.training_pixels(stored, data, seed=seed).numpy().astype(int)
        if min(height, width) < 40 or suffix == "png":
            np.testing.assert_array_equal(reduced, got)
        else:
            assert (reduced != got).any()
            assert np.abs(reduced - got).mean() < 12  # shifted by up to one pixel of the result


def test_half_size_decoding_does_not_shift_the_image(photographs):
    """For a window aligned with the reduced grid, the result is not shifted."""
    import tensorflow as tf

    file = next(photographs.rglob("*.jpg"))
    data = Data(image_size=24)

    def box(shape):
        return tf.stack([0, 0, shape[0] // 8 * 8, shape[1] // 8 * 8])

    reduced, full = (
        decode.resize(
            decode.decode_window(file.read_bytes(), box, None, least=least),
            data,
            antialias_above=0.0,
        )
        for least in (24, 0)
    )
    assert np.abs(reduced.numpy().astype(int) - full.numpy()).mean() < 2


def test_large_crops_are_antialiased(photographs):
    """A large crop of a chessboard with squares of one pixel is grey, without moiré."""
    import io

    board = (np.indices((200, 200)).sum(0) % 2 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(board).save(buffer, "PNG")
    data = Data(image_size=30, train_crop="random_resized", crop_area=(0.9, 1.0))
    pixels = decode.training_pixels(buffer.getvalue(), data, seed=np.array([0, 1])).numpy()
    assert np.abs(pixels.astype(int) - 127).max() < 40


def test_the_centre_crop_is_torchvisions_resize_and_centre_crop():
    scale, first = decode.center_window(np.array([333, 500], np.int32), 224, 0.875)
    np.testing.assert_allclose(scale, [256 / 333, 384 / 500])  # 256 * 500 // 333 = 384
    np.testing.assert_array_equal(first, [16, 80])
    scale, first = decode.center_window(np.array([257, 256], np.int32), 224, 0.875)
    np.testing.assert_array_equal(first, [16, 16])  # 16.5 rounds to even


# --- torchvision, in a separate process: torch and TensorFlow do not work in one process ---

CROPS = [
    (mode, size, fraction)
    for mode in ("bilinear", "bicubic")
    for size, fraction in ((224, 0.875), (160, 0.95), (64, 1.0))
]
SHAPES = ((300, 200), (100, 400))
TORCHVISION = """
import pathlib, sys
import numpy as np, torch
from PIL import Image
from torchvision.transforms import v2

folder, output, crops, shapes = pathlib.Path(sys.argv[1]), sys.argv[2], *map(eval, sys.argv[3:])
found, files = {}, sorted(folder.rglob("*.jpg"))
for mode, size, fraction in crops:
    whole = v2.Compose([v2.Resize(int(size / fraction), v2.InterpolationMode(mode)), v2.CenterCrop(size)])
    found[f"{mode} {size}"] = np.stack([np.asarray(whole(Image.open(file))) for file in files])
torch.manual_seed(0)
for shape in shapes:
    draw, blank = v2.RandomResizedCrop(8), torch.zeros(3, *shape)
    windows = [draw.make_params([blank]) for _ in range(4000)]
    found[str(shape)] = np.array([[w["top"], w["left"], w["height"], w["width"]] for w in windows])
np.savez(output, **found)
"""


@pytest.fixture
def torchvisions(photographs, tmp_path):
    output = tmp_path / "torchvision.npz"
    command = [sys.executable, "-c", TORCHVISION, photographs, output, repr(CROPS), repr(SHAPES)]
    subprocess.run(list(map(str, command)), check=True)
    return np.load(output)


@pytest.mark.parity
def test_evaluation_pixels_equal_torchvisions(photographs, torchvisions):
    for mode, size, fraction in CROPS:
        data = Data(
            image_size=size, eval_crop="center", eval_crop_fraction=fraction, interpolation=mode
        )  # fmt: skip
        files = sorted(photographs.rglob("*.jpg"))
        for file, expected in zip(files, torchvisions[f"{mode} {size}"], strict=True):
            got = decode.evaluation_pixels(file.read_bytes(), data).numpy()
            difference = np.abs(got.astype(int) - expected)
            assert difference.max() <= (1 if mode == "bilinear" else 16)
            assert difference.mean() < 0.3
            np.testing.assert_array_equal(prepare([file], data)[0], expected)


@pytest.mark.parity
def test_random_windows_have_torchvisions_distribution(torchvisions):
    """Compare the mean and the standard deviation of 4,000 windows."""
    import tensorflow as tf

    for shape in SHAPES:
        numbers, theirs = tf.data.Dataset.range(4000), torchvisions[str(shape)]
        ours = numbers.map(
            lambda i, shape=shape: decode.random_window(
                tf.constant(shape), (0.08, 1.0), (0.75, 4 / 3), tf.stack([i, i])
            )
        )
        ours = np.stack(list(ours.as_numpy_iterator()))
        error = np.sqrt(2 / 4000) * theirs.std(axis=0)
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
        np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.1)
