"""A first layer made of the data: filters that give patches of the training images unit covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from flax_resnet.augment import evaluation_images
from flax_resnet.config import Config
from flax_resnet.models.airbench import WHITENING_SIZE, Airbench
from flax_resnet.training import sharding
from flax_resnet.training.state import TrainState

EPSILON = 5e-4  # added to the variances, which are small where patches vary little


def covariance(images: jax.Array) -> jax.Array:
    """Returns the second moments [P, P] of the 2x2 patches, P = 4 C, of normalised images [N, H, W, C]."""
    size = WHITENING_SIZE
    height, width = (side - size + 1 for side in images.shape[1:3])
    shifted = [
        images[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    exact = jax.lax.Precision.HIGHEST  # float32 on every platform
    total = jnp.einsum("nhwp,nhwq->pq", patches, patches, precision=exact)
    return total / (len(images) * height * width)


def filters(moments: np.ndarray) -> np.ndarray:
    """Returns the kernel [2, 2, C, 8 C]: eigenvectors over the root of their variance, and their negatives.

    Args:
      moments: [4 C, 4 C], as `covariance` gives them.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.2, after Page 2019, "How to
    train your ResNet".
    """
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    # Largest variance first. A library may give either sign of a vector: the larger entry is made positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    scaled = (vectors * signs / np.sqrt(values + EPSILON))[:, ::-1]
    shape = (WHITENING_SIZE, WHITENING_SIZE, len(values) // WHITENING_SIZE**2, 2 * len(values))
    return np.concatenate([scaled, -scaled], axis=1).reshape(shape).astype(np.float32)


def measured(feed: Any, config: Config, mesh: Mesh) -> np.ndarray:
    """Returns the `filters` of the images of the first training batch, as they are before augmentation."""

    def moments(data: Any, steps: Any) -> jax.Array:
        first = jax.tree.map(lambda leaf: leaf[0], steps)
        return covariance(
            evaluation_images(feed.training_batch(data, first)["image"], config.augment)
        )

    compiled = jax.jit(moments, out_shardings=sharding.replicated(mesh))
    found = filters(np.asarray(compiled(feed.data, next(iter(feed.training(0, 1))))))
    return multihost_utils.broadcast_one_to_all(found)  # other processors may round otherwise


def whitens(model: Any) -> bool:
    """Whether a network has such a layer."""
    return isinstance(model, Airbench)


def whitened(state: TrainState, kernel: np.ndarray) -> TrainState:
    """Returns a state whose first layer has these filters, that of the averaged weights too."""

    def changed(batch_stats: Any) -> Any:
        old = batch_stats["conv1"]["kernel"]
        return {**batch_stats, "conv1": {"kernel": jax.device_put(kernel, old.sharding)}}

    average = state.average
    if average:
        average = {**average, "batch_stats": changed(average["batch_stats"])}
    return dataclasses.replace(state, batch_stats=changed(state.batch_stats), average=average)
