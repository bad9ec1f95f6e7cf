"""Colour, warps and policies against what torchvision gave (tests/golden), or a NumPy statement."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from flax_resnet.augment import color, policy
from flax_resnet.augment.augment_section import Augment
from flax_resnet.augment.geometry import warp
from flax_resnet.augment.policies import randaugment, trivialaugment

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3)).astype(np.uint8)
RANGES = {"randaugment": randaugment.ranges, "trivialaugment": trivialaugment.ranges}
GOLDEN = np.load(ROOT / "tests" / "golden" / "augment.npz")


POLICIES = ("randaugment", "trivialaugment")


def column(values):
    return jnp.asarray(values, jnp.float32)[:, None, None, None]


def test_warp_takes_the_nearest_pixel():
    """Against the definition in float64, for matrices that no policy has."""
    draw = np.random.default_rng(2)
    matrices = (np.eye(2, 3) + draw.uniform(-0.5, 0.5, (64, 2, 3))).astype(np.float32)
    matrices[:, :, 2] *= 6
    got = np.asarray(warp(jnp.asarray(IMAGES), matrices))
    for image, matrix, result in zip(IMAGES, matrices.astype(np.float64), got, strict=True):
        for row, column in itertools.product(range(6), range(5)):
            x, y = matrix @ (column + 0.5 - 2.5, row + 0.5 - 3, 1) + (2.5, 3)
            inside = 0 <= x < 5 and 0 <= y < 6
            expected = image[math.floor(y), math.floor(x)] if inside else 0
            np.testing.assert_array_equal(result[row, column], expected)


@pytest.mark.parametrize("name", POLICIES)
def test_operations_are_torchvisions_bit_for_bit(name):
    number = {"randaugment": 9, "trivialaugment": 30}[name]
    expected = GOLDEN[name]
    assert list(policy.KINDS) == GOLDEN[f"{name}/names"].tolist()
    rows = policy.operations(RANGES[name](9, 9), 9, 9)
    chosen = policy.Operation(*(x[:, number].reshape(-1, *x.shape[3:]) for x in rows))
    images = np.broadcast_to(GOLDEN["image"], (2 * len(policy.KINDS), 9, 9, 3))
    got = np.asarray(jax.jit(policy.apply)(images, chosen)).reshape(expected.shape)
    for kind, ours, theirs in zip(policy.KINDS, got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=kind)


@pytest.mark.parametrize("name", POLICIES)
def test_magnitudes_are_torchvisions_to_the_last_bit(name):
    ranges = RANGES[name](9, 9)
    for kind, expected in zip(policy.KINDS.values(), GOLDEN[f"{name}/magnitudes"], strict=True):
        got = policy.magnitudes(kind.range, *ranges[kind.range])
        np.testing.assert_array_equal(got, expected, err_msg=kind.range)


def test_hue_is_torchvisions_but_for_one_level():
    turns = (-0.5, -0.2, 0.05, 0.3)
    images = np.broadcast_to(GOLDEN["image"], (4, 9, 9, 3))
    got = np.asarray(color.hue(jnp.asarray(images), column(turns)))
    assert np.abs(got.astype(int) - GOLDEN["hue"]).max() <= 1
    assert (got != GOLDEN["hue"]).mean() < 0.01


def test_tables_of_a_constant_image_change_nothing():
    counts = jnp.zeros((1, 1, 256), jnp.int32).at[0, 0, 77].set(900)
    for table in (color.autocontrast_levels, color.equalize_levels):
        np.testing.assert_array_equal(jax.jit(table)(counts)[0, 0], np.arange(256))


def test_equalize_spreads_the_histogram():
    counts = np.random.default_rng(0).integers(0, 60, (2, 3, 256)) * (np.arange(256) % 3 == 1)
    counts[..., 253] = 5000  # the highest level does not count for the step
    got = np.asarray(jax.jit(color.equalize_levels)(jnp.asarray(counts, jnp.int32)))
    for table, histogram in zip(got.reshape(-1, 256), counts.reshape(-1, 256), strict=True):
        step = histogram[histogram > 0][:-1].sum() // 255
        assert step > 3
        below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        np.testing.assert_array_equal(table, np.minimum((below + step // 2) // step, 255))


def test_histogram_counts():
    expected = [[np.bincount(i[..., c].ravel(), minlength=256) for c in range(3)] for i in IMAGES]
    np.testing.assert_array_equal(color.histogram(jnp.asarray(IMAGES)), expected)


@pytest.mark.parametrize("name", color.JITTERS)
def test_jitter_draws_uniformly_within_its_range(name, monkeypatch):
    monkeypatch.setitem(color.JITTERS, name, lambda images, amount: images + amount)
    images, key = jnp.zeros((2000, 1, 1, 1)), jax.random.key(0)
    for low, high in ((-0.4, 0.4), (-1.0, 1.6)):
        ranges = dict.fromkeys(color.JITTERS, 0.0) | {name: high}
        amounts = jax.jit(lambda: color.jitter(key, images, ranges))()  # noqa: B023
        share = np.sort((np.ravel(amounts) - low) / (high - low))
        assert 0 <= share[0] < 0.01
        assert 0.99 < share[-1] <= 1
        np.testing.assert_allclose(share, np.linspace(0, 1, 2000), atol=0.05)


def test_jitter_comes_in_every_order(monkeypatch):
    for number, name in enumerate(color.JITTERS, 1):
        append = lambda images, _, number=number: 10 * images + number  # noqa: E731
        monkeypatch.setitem(color.JITTERS, name, append)
    ranges = dict.fromkeys(color.JITTERS, 0.1)
    images = jnp.zeros((1, 1, 1, 1), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 2400)
    seen = np.ravel(jax.jit(jax.vmap(lambda key: color.jitter(key, images, ranges)))(keys))
    orders, counts = np.unique(seen, return_counts=True)
    assert orders.tolist() == sorted(
        int("".join(order)) for order in itertools.permutations("1234")
    )
    assert 60 < counts.min() <= counts.max() < 145  # 100 and four standard deviations


def test_policies_draw_every_operation_bin_and_sign_alike():
    for values, count in zip(policy.choices(jax.random.key(0), 8680), (14, 31, 2), strict=True):
        counts = np.bincount(values, minlength=count)
        mean = 8680 / count
        assert len(counts) == count
        assert np.abs(counts - mean).max() < 4 * math.sqrt(mean)


def test_randaugment_applies_independent_operations_in_turn():
    images = np.broadcast_to(GOLDEN["image"], (16, 9, 9, 3))
    key = jax.random.key(5)
    rows, apply = policy.operations(randaugment.ranges(9, 9), 9, 9), jax.jit(policy.apply)
    expected, kinds = jnp.asarray(images), []
    for turn in range(2):
        kind, _, sign = policy.choices(jax.random.fold_in(key, turn), 16)
        kinds.append(np.asarray(kind))
        chosen = policy.Operation(*(x[kind, 9, sign] for x in map(jnp.asarray, rows)))
        expected = apply(expected, chosen)
    got = jax.jit(lambda x: randaugment.randaugment(key, x, Augment(policy="randaugment")))(images)
    np.testing.assert_array_equal(got, expected)
    assert (kinds[0] != kinds[1]).any()


@pytest.mark.parity
@pytest.mark.parametrize("name", POLICIES)
def test_every_bin_is_torchvisions(name):
    """Bit for bit at every bin; but warps whose source lies midway between two pixels may take the other one."""
    from golden import make_augment

    draw = np.random.default_rng(0)
    rows, apply = policy.operations(RANGES[name](64, 64), 64, 64), jax.jit(policy.apply)
    for index, (kind, (bins, signed)) in enumerate(make_augment.space(name, 64, 64).items()):
        bins = np.broadcast_to(bins.numpy(), policy.BINS)
        smooth = np.indices((64, 64)).sum(0)[..., None] + draw.integers(0, 90, (62, 64, 64, 3))
        noisy = draw.integers(0, 256, (62, 64, 64, 3))
        images = np.where(np.arange(62)[:, None, None, None] % 3, smooth, noisy).astype(np.uint8)
        chosen = policy.Operation(*(x[index].reshape(62, *x.shape[3:]) for x in rows))
        got = np.asarray(apply(images, chosen))
        expected = np.stack(
            [
                make_augment.operation(image, kind, -magnitude if signed and i % 2 else magnitude)
                for i, (image, magnitude) in enumerate(zip(images, np.repeat(bins, 2), strict=True))
            ]
        )
        apart = (got != expected).reshape(62, -1).mean(1)
        ties = kind.startswith("Shear") * 0.1 + (kind == "Rotate") * 1e-3
        assert apart.max() <= ties, (kind, apart.argmax() // 2)
        assert (apart > 1e-3).sum() <= 8, kind


@pytest.mark.parity
@pytest.mark.parametrize("name", color.JITTERS)
def test_jitter_is_torchvisions(name):
    import torchvision.transforms.functional as F
    from golden import make_augment

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (64, 64, 64, 3)).astype(np.uint8)
    amounts = draw.uniform(-0.5, 0.5, 64).astype(np.float32)
    got = np.asarray(jax.jit(color.JITTERS[name])(images, column(amounts)))
    factors = amounts if name == "hue" else 1 + amounts.astype(np.float64)
    theirs = getattr(F, f"adjust_{name}")
    expected = np.stack(
        [
            make_augment.on_tensor(theirs, image, float(factor))
            for image, factor in zip(images, factors, strict=True)
        ]
    )
    apart = np.abs(got.astype(int) - expected)
    # Hue by its arithmetic; saturation by the colours whose luma torchvision rounds down, 20 of 2^24.
    assert apart.max() <= (name in ("hue", "saturation"))
    assert (apart > 0).mean() < 1e-4


def test_grey_is_truncated_luma():
    """In exact arithmetic, for every colour."""
    levels = np.arange(256)
    green, blue = np.meshgrid(levels, levels, indexing="ij")
    for red in range(0, 256, 15):
        colors = np.stack([np.full_like(green, red), green, blue], -1).astype(np.uint8)
        expected = (2989 * red + 5870 * green + 1140 * blue) // 10000
        np.testing.assert_array_equal(color.grey(jnp.asarray(colors))[..., 0], expected)
