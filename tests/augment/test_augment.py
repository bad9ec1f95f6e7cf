"""Every operation against a NumPy statement of it, or against what torchvision gave (tests/golden)."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS

from flax_resnet.augment import evaluation_images, mix, training_batch
from flax_resnet.augment.augment_section import FLIPS, Augment

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(64) % 10
# With these, a normalised image holds the levels themselves.
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
EVERYTHING = {
    "pad_crop": 2, "pad_crop_fill": "reflect", "flip": "horizontal",
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1,
    "policy": "trivialaugment", "random_erasing": 0.5, "random_erasing_fill": "noise", "cutout": 2,
    "mixup": 0.8, "cutmix": 1.0, "mix_mode": "element",
}  # fmt: skip
batch_of = jax.jit(training_batch, static_argnums=(3, 4))
mix_of = jax.jit(mix.mix, static_argnames=("mixup", "cutmix", "mode", "probability", "switch"))


def augmented(images=IMAGES, key=1, **options):
    config = Augment(**PLAIN, **options)
    labels = np.zeros(len(images), int)
    return np.asarray(batch_of(jax.random.key(key), images, labels, 10, config)[0])


def levels(images=IMAGES, key=1, **options):
    return np.rint(augmented(images, key, **options)).astype(int)


# Geometry


def test_normalisation_and_plain_labels():
    config = Augment()
    expected = (IMAGES / 255 - np.array(config.mean)) / np.array(config.std)
    images, labels = training_batch(jax.random.key(0), IMAGES, LABELS, 10, config)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    np.testing.assert_allclose(evaluation_images(IMAGES, config), expected, atol=1e-5)
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.eye(10)[LABELS])


# Share of the 64 images that each way to mirror shows: as they are, left to right, top to bottom, and both.
MIRRORED = {
    "none": (1, 0, 0, 0),
    "horizontal": (1 / 2, 1 / 2, 0, 0),
    "vertical": (1 / 2, 0, 1 / 2, 0),
    "both": (1 / 4,) * 4,
}


@pytest.mark.parametrize("name", FLIPS)
def test_flips_mirror_their_share_of_the_images(name):
    counts = np.zeros(4)
    for got, image in zip(levels(flip=name), IMAGES, strict=True):
        views = (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
        (shown,) = [number for number, view in enumerate(views) if (view == got).all()]
        counts[shown] += 1
    expected = 64 * np.array(MIRRORED[name])
    assert (np.abs(counts - expected) <= 12 * (expected > 0)).all()


@pytest.mark.parametrize(("padding", "mode"), [("black", "constant"), ("reflect", "reflect")])
def test_shift_moves_by_at_most_its_pixels(padding, mode):
    moves = set()
    for got, image in zip(levels(pad_crop=1, pad_crop_fill=padding), IMAGES, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode=mode)
        found = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if (padded[top : top + 6, left : left + 5] == got).all()
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) == 9


# Erasing


def test_cutout_is_a_square_about_any_pixel():
    def cut(row, column):
        mask = np.ones((6, 5), bool)
        mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = False
        return mask

    squares = {cut(*centre).tobytes() for centre in itertools.product(range(6), range(5))}
    images = np.full((600, 6, 5, 3), 9, np.uint8)
    got = levels(images, cutout=3)
    assert set(np.unique(got)) == {0, 9}
    assert {(image[..., 0] == 9).tobytes() for image in got} == squares
    assert (got == got[..., :1]).all()


def test_an_even_cutout_is_devries_and_taylors():
    """Rows centre - s/2 to centre + s/2, the last excluded."""
    images = np.full((400, 6, 5, 3), 9, np.uint8)
    tops = {tuple((image[..., 0] == 0).any(1).nonzero()[0]) for image in levels(images, cutout=2)}
    assert tops == {(0,)} | {(row - 1, row) for row in range(1, 6)}


def test_erasing_is_a_rectangle_of_the_area_and_aspect_asked_for():
    images = np.full((600, 40, 50, 3), 9, np.uint8)
    got = levels(
        images, random_erasing=0.5, random_erasing_area=(0.1, 0.2), random_erasing_aspect=(0.5, 3.0)
    )
    areas, aspects, tops, lefts = [], [], [], []
    for gone in got[..., 0] == 0:
        if not gone.any():
            continue
        rows, columns = gone.any(1).nonzero()[0], gone.any(0).nonzero()[0]
        assert gone.sum() == len(rows) * len(columns)
        assert np.ptp(rows) + 1 == len(rows)
        areas.append(len(rows) * len(columns) / 2000)
        aspects.append(len(rows) / len(columns))
        tops.append(rows[0] / (40 - len(rows)))
        lefts.append(columns[0] / (50 - len(columns)))
    assert 250 <= len(areas) <= 350
    assert 0.09 < min(areas) < 0.11  # sides are rounded to pixels
    assert 0.19 < max(areas) < 0.21
    assert np.mean(areas) == pytest.approx(0.15, abs=0.006)
    assert 0.46 < min(aspects) < 0.55
    assert 2.7 < max(aspects) < 3.3
    assert np.mean(np.log(aspects)) == pytest.approx(np.log(0.5 * 3.0) / 2, abs=0.12)
    for places in (tops, lefts):
        assert (min(places), max(places)) == (0, 1)
        assert np.mean(places) == pytest.approx(0.5, abs=0.06)


def test_a_rectangle_that_does_not_fit_erases_nothing():
    images = np.full((20, 6, 6, 3), 9, np.uint8)
    assert (levels(images, random_erasing=1.0, random_erasing_area=(1.0, 1.0)) == 9).all()


def test_a_rectangle_that_seldom_fits_is_drawn_again():
    images = np.full((200, 20, 20, 3), 9, np.uint8)
    gone = (levels(images, random_erasing=1.0, random_erasing_area=(0.5, 0.5)) == 0).any((1, 2, 3))
    assert gone.mean() > 0.95  # one attempt alone: 0.55


def test_erasing_with_noise():
    images = np.full((200, 20, 20, 3), 9, np.uint8)
    options = {"random_erasing": 1.0, "random_erasing_area": (0.2, 0.4)}
    noise = augmented(images, **options, random_erasing_fill="noise")
    where = augmented(images, **options) == 0
    assert (noise[~where] == 9).all()
    values = noise[where]
    assert len(np.unique(values)) > 0.99 * values.size
    assert values.mean() == pytest.approx(0, abs=0.02)
    assert values.std() == pytest.approx(1, abs=0.02)


# Mixing


def mixed(rows=16, key=0, size=(8, 6), **options):
    """Mixes images that hold their row's number; returns shares [N], and each pixel's share [N, H, W]."""
    own = np.arange(rows, dtype=np.float32)
    images = np.broadcast_to(own[:, None, None, None], (rows, *size, 3))
    options = {"mixup": 0.0, "cutmix": 0.0} | options
    targets = np.eye(rows, dtype=np.float32)
    images, targets = mix_of(jax.random.key(key), images, targets, **options)
    targets, other = np.asarray(targets), own[::-1]
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    shares = targets[np.arange(rows), rows - 1 - np.arange(rows)]
    np.testing.assert_allclose(np.diagonal(targets), 1 - shares, atol=1e-6)
    assert (np.asarray(images) == np.asarray(images)[..., :1]).all()
    pixels = (np.asarray(images)[..., 0] - own[:, None, None]) / (other - own)[:, None, None]
    return shares, pixels


@pytest.mark.parametrize("mode", mix.MODES)
def test_mixup_mixes_images_as_labels(mode):
    shares, pixels = mixed(mixup=0.8, mode=mode)
    np.testing.assert_allclose(
        pixels, np.broadcast_to(shares[:, None, None], pixels.shape), atol=1e-5
    )
    distinct = {"batch": 1, "pair": 8, "element": 16}[mode]
    assert len(np.unique(shares)) == distinct
    if mode == "pair":
        np.testing.assert_array_equal(shares, shares[::-1])


@pytest.mark.parametrize("mode", mix.MODES)
def test_cutmix_mixes_labels_by_the_area_that_it_covers(mode):
    counts = set()
    for key in range(3):
        shares, pixels = mixed(cutmix=1.0, mode=mode, key=key)
        assert set(np.unique(pixels)) <= {0, 1}
        np.testing.assert_allclose(shares, pixels.mean((1, 2)), atol=1e-7)
        counts |= {len(np.unique(pixels.reshape(16, -1), axis=0))}
        for box in pixels:
            np.testing.assert_array_equal(box, np.outer(box.any(1), box.any(0)))
    limit = {"batch": 1, "pair": 8, "element": 16}[mode]
    assert limit / 2 < max(counts) <= limit
    if mode == "pair":
        np.testing.assert_array_equal(pixels, pixels[::-1])


def test_cutmix_boxes_are_timms():
    """int(side * sqrt(1 - lambda)) about the centre, clipped."""
    draw = np.random.default_rng(0)
    shares = draw.uniform(size=50).astype(np.float32)
    centres = draw.integers(0, (8, 6), (50, 2)).astype(np.int32)
    got = np.asarray(mix.cut_box(jnp.asarray(shares), jnp.asarray(centres), (8, 6)))
    for share, centre, box in zip(shares, centres, got, strict=True):
        expected = np.zeros((8, 6, 1), bool)
        slices = []
        for middle, side in zip(centre, (8, 6), strict=True):
            length = int(side * np.sqrt(share))
            edges = np.clip((middle - length // 2, middle + (length + 1) // 2), 0, side)
            slices.append(slice(*edges))
        expected[tuple(slices)] = True
        np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_lambda_is_beta_distributed(alpha):
    shares, _ = mixed(rows=4000, size=(1, 1), mixup=alpha, mode="element")
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_mixing_happens_and_switches_as_often_as_asked():
    options = {"rows": 2000, "mode": "element", "probability": 0.6}
    shares, pixels = mixed(mixup=1.0, cutmix=1.0, switch=0.25, size=(16, 16), **options)
    cut = ((pixels == 0) | (pixels == 1)).all((1, 2)) & (shares > 0)
    assert (shares > 0).mean() == pytest.approx(0.6, abs=0.04)
    assert cut.sum() / (shares > 0).sum() == pytest.approx(0.25, abs=0.04)
    shares, pixels = mixed(mixup=1.0, cutmix=1.0, probability=0.0)
    assert (shares == 0).all()
    assert (pixels == 0).all()


# The whole


def test_an_operation_does_not_change_what_another_draws():
    alone = levels(flip="horizontal", pad_crop=1)
    with_more = levels(flip="horizontal", pad_crop=1, cutout=2, random_erasing=0.5)
    kept = with_more != 0
    assert 0.3 < kept.mean() < 0.95
    np.testing.assert_array_equal(with_more[kept], alone[kept])


def test_order_of_the_operations():
    """What is erased is erased of the normalised, and then mixed."""
    images = np.full((16, 6, 6, 3), 200, np.uint8)
    labels = np.zeros(16, int)
    config = Augment(cutout=3, brightness=0.5)
    got = np.asarray(batch_of(jax.random.key(0), images, labels, 10, config)[0])
    assert ((got == 0).all(-1).any((1, 2))).all()
    mixing = Augment(cutout=3, brightness=0.5, mixup=1.0)
    both = np.asarray(batch_of(jax.random.key(0), images, labels, 10, mixing)[0])
    share = (both - got) / np.where(got[::-1] == got, np.nan, got[::-1] - got)
    assert np.nanstd(share) < 1e-4
    assert 0 < np.nanmean(share) < 1


@pytest.mark.parametrize(
    "options",
    [EVERYTHING, {"mixup": 0.8}, {"policy": "three_augment"}],
    ids=["everything", "mixup", "three_augment"],
)
def test_a_row_is_augmented_by_its_place_alone(options):
    """Sharding over eight devices changes no pixel: with everything at once, and where most can be fused."""
    from flax_resnet.training import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    config = Augment(**options)

    def batch(images, labels):
        return training_batch(jax.random.key(4), images, labels, 10, config)

    rows = sharding.split(mesh)
    compiled = partial(jax.jit, batch, compiler_options=AS_USERS)
    split = compiled(in_shardings=rows, out_shardings=rows)(IMAGES, LABELS)
    alone = compiled()(IMAGES, LABELS)
    for got, expected in zip(split, alone, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(alone[1].sum(1), 1, atol=1e-6)


def test_another_step_draws_anew_and_rows_draw_apart():
    images = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    first, again, second = (
        levels(images, key=key, pad_crop=2, policy="trivialaugment") for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != second).any((1, 2, 3)).mean() > 0.8
    assert len(np.unique(first.reshape(64, -1), axis=0)) > 32


def program(**options):
    def batch(key, images, labels):
        return training_batch(key, images, labels, 10, Augment(**options))

    return str(jax.make_jaxpr(batch)(jax.random.key(0), IMAGES, LABELS))


def test_what_is_off_is_not_in_the_program():
    plain = program()
    assert "random" not in plain
    for name, value in EVERYTHING.items():
        if name not in ("pad_crop_fill", "random_erasing_fill", "mix_mode"):
            assert program(**{name: value}) != plain, name


def test_grey():
    config = Augment(
        mean=(0.3,),
        std=(0.4,),
        flip="horizontal",
        random_erasing=0.5,
        random_erasing_fill="noise",
        cutout=2,
    )
    images, _ = batch_of(jax.random.key(0), IMAGES, LABELS, 10, config)
    assert images.shape == (64, 6, 5, 1)
    assert np.isfinite(images).all()
