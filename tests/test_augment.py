import jax
import numpy as np

from flax_resnet.augment import evaluation_images, training_images
from flax_resnet.config import Augment

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3)).astype(np.uint8)
PLAIN = Augment(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


def augmented(**options):
    config = Augment(mean=PLAIN.mean, std=PLAIN.std, **options)
    return np.rint(training_images(jax.random.key(1), IMAGES, config)).astype(int)


def test_normalisation():
    config = Augment()
    expected = (IMAGES / 255 - np.array(config.mean)) / np.array(config.std)
    for images in (
        evaluation_images(IMAGES, config),
        training_images(jax.random.key(0), IMAGES, config),
    ):
        np.testing.assert_allclose(images, expected, atol=1e-5)


def test_flip_mirrors_about_half():
    flipped = 0
    for got, image in zip(augmented(flip=True), IMAGES, strict=True):
        mirrored = (got == image[:, ::-1]).all()
        assert mirrored or (got == image).all()
        flipped += mirrored
    assert 20 <= flipped <= 44


def test_shift_moves_by_at_most_its_pixels_and_fills_with_black():
    moves = set()
    for got, image in zip(augmented(shift=1), IMAGES, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        found = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if (padded[top : top + 6, left : left + 5] == got).all()
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) == 9


def test_a_row_is_augmented_by_its_place_alone():
    """Sharding over eight devices changes no pixel."""
    from flax_resnet.training import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    config = Augment(flip=True, shift=2)
    split = jax.jit(
        lambda x: training_images(jax.random.key(4), x, config),
        in_shardings=sharding.split(mesh),
        out_shardings=sharding.split(mesh),
    )
    alone = jax.jit(lambda x: training_images(jax.random.key(4), x, config))
    np.testing.assert_array_equal(split(IMAGES), alone(IMAGES))
