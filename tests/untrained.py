"""Variables as before training, and images and labels drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.data.sources.arrays import ArraySource


def initial(model):
    """Variables as before training; drawn by NumPy, since to compile the initialisation takes long."""
    draw = np.random.default_rng(0)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def leaf(path, shape):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(shape.shape[:-1]))  # He et al. 2015, equation 10
            return (draw.standard_normal(shape.shape) * scale).astype(np.float32)
        return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_source(count, classes=2, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    labels = draw.permutation(np.arange(count) % classes)
    return ArraySource(images, labels, [f"class {c}" for c in range(classes)]), images, labels
