"""3-Augment against SciPy's Gaussian and NumPy, and the shares of its three operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from flax_resnet.augment import color
from flax_resnet.augment.augment_section import POLICIES, Augment
from flax_resnet.augment.policies import three_augment

IMAGES = np.random.default_rng(0).integers(0, 256, (48, 21, 18, 3)).astype(np.uint8)


@pytest.mark.parametrize("number", [0, 60, 128, 255])
def test_the_blur_is_a_gaussian(number):
    deviation = three_augment.DEVIATIONS[number]
    got = jax.jit(three_augment.blur)(IMAGES, jnp.full(48, number))
    expected = IMAGES.astype(np.float64)
    for axis in (1, 2):
        expected = gaussian_filter1d(
            expected, deviation, axis, mode="nearest", radius=three_augment.RADIUS
        )
    assert got.dtype == np.uint8
    assert np.abs(got - expected).max() < 0.6  # rounded once, and weights of 14 bits


def test_a_level_stays_what_it_is():
    flat = np.full((256, 4, 4, 3), np.arange(256)[:, None, None, None], np.uint8)
    got = jax.jit(three_augment.blur)(flat, jnp.arange(256))
    np.testing.assert_array_equal(got, flat)


def test_each_image_has_one_of_three_operations(monkeypatch):
    monkeypatch.setattr(color, "jitter", lambda key, images, ranges: images)
    key, images = jax.random.key(3), np.concatenate([IMAGES] * 20)
    got = np.asarray(three_augment.three_augment(key, images, Augment(policy="three_augment")))
    is_grey = (got == np.asarray(color.grey(jnp.asarray(images)))).all((1, 2, 3))
    inverted = np.where(images >= 128, 255 - images, images)
    is_solarised = (got == inverted).all((1, 2, 3))
    assert not (is_grey & is_solarised).any()
    rest = got[~is_grey & ~is_solarised].astype(int)
    assert np.abs(rest - images[~is_grey & ~is_solarised]).max() > 30  # blurred, not left alone
    for share in (is_grey.mean(), is_solarised.mean()):
        assert abs(share - 1 / 3) < 3 * np.sqrt(2 / 9 / len(images))


def test_the_colours_are_jittered_and_rows_depend_on_their_number_alone(monkeypatch):
    apply = jax.jit(
        lambda key, x: POLICIES["three_augment"].apply(key, x, Augment(policy="three_augment"))
    )
    got = np.asarray(apply(jax.random.key(1), IMAGES))
    assert got.shape == IMAGES.shape
    assert got.dtype == np.uint8
    again = np.asarray(apply(jax.random.key(1), np.concatenate([IMAGES[:24], IMAGES[:24][::-1]])))
    np.testing.assert_array_equal(got[:24], again[:24])
    assert (got != np.asarray(apply(jax.random.key(2), IMAGES))).any()
    monkeypatch.setattr(color, "jitter", lambda key, images, ranges: images)
    section = Augment(policy="three_augment")
    plain = np.asarray(three_augment.three_augment(jax.random.key(1), IMAGES, section))
    assert (got != plain).any((1, 2, 3)).mean() > 0.9
