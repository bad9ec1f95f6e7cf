"""Mixup and CutMix: image i is mixed with its partner, image N - 1 - i of the global batch."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from flax_resnet.augment.geometry import inside
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

# {mode: function (i, n) -> the row whose random draws row i of n rows uses}
MODES = {
    "batch": lambda i, n: jnp.zeros_like(i),
    "pair": lambda i, n: jnp.minimum(i, n - 1 - i),
    "element": lambda i, n: i,
}


def mix(
    key: Array,
    images: Array,
    targets: Array,
    *,
    mixup: float,
    cutmix: float,
    mode: str = "batch",
    probability: float = 1.0,
    switch: float = 0.5,
) -> tuple[Array, Array]:
    """Mix images and labels with those of their partners.

    A pixel becomes own + share * (partner - own), with lambda ~ Beta(alpha, alpha):
    - Mixup: the share is 1 - lambda everywhere.
    - CutMix: the share is 1 inside a box and 0 outside. The box is centred at a uniformly drawn pixel, its sides
      are sqrt(1 - lambda) of the image's, and the borders clip it.
    The label is mixed with the mean of the share. For CutMix, that is the area of the clipped box.

    Args:
      key: the operation's key.
      images: float32 [N, H, W, C].
      targets: float32 [N, K], rows that sum to 1.
      mixup: alpha of mixup, 0 for none.
      cutmix: alpha of CutMix, 0 for none.
      mode: what shares one draw: the whole "batch", a "pair" of partners, or one "element".
      probability: probability that a draw mixes the images.
      switch: probability of CutMix if both are on.

    Returns:
      Images and targets, with shapes and dtypes as passed.

    Source: Zhang et al. 2018, "mixup", section 2; Yun et al. 2019, "CutMix", section 3; modes are timm's.
    """
    rows = len(images)
    keys = row_keys(key, MODES[mode](jnp.arange(rows, dtype=jnp.uint32), rows))
    if not mixup:
        switch = 1.0
    elif not cutmix:
        switch = 0.0

    chance, switching, quantile, row, column = uniform(keys, 5)
    cut = switching < switch
    share = jnp.where(cut, symmetric_beta(quantile, cutmix), symmetric_beta(quantile, mixup))
    share = jnp.where(chance < probability, share, 0)
    partners = images[::-1]
    blended = jnp.where(cut, 0, share)
    mixed = images + blended[:, None, None, None] * (partners - images) if mixup else images
    if cutmix:
        height, width = images.shape[1:3]
        centre = jnp.stack([below(row, height), below(column, width)], axis=1)
        box = cut_box(jnp.where(cut, share, 0), centre, (height, width))
        mixed = jnp.where(box, partners, mixed)
        share = blended + box.astype(jnp.float32).mean(axis=(1, 2, 3))
    return mixed, targets + share[:, None] * (targets[::-1] - targets)


def symmetric_beta(quantile: Array, alpha: float) -> Array:
    """Map uniform numbers in [0, 1) to Beta(alpha, alpha): float32 [N]; 0 if alpha is 0.

    The inverse distribution function is interpolated linearly in 4,096 steps. jax.random.beta uses a rejection
    loop, which takes seconds to compile and synchronizes the devices in every iteration.
    """
    if not alpha:
        return jnp.zeros_like(quantile)
    steps = 4096
    values = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, steps + 1)), jnp.float32)
    index = below(quantile, steps)
    part = quantile * steps - index
    return values[index] + part * (values[index + 1] - values[index])


def cut_box(share: Array, centre: Array, shape: tuple[int, int]) -> Array:
    """Return the mask of pixels taken from the partner, bool [N, H, W, 1].

    Args:
      share: share of the image's area, float32 [N]; 0 for no box.
      centre: row and column of the box's centre, int32 [N, 2].
      shape: (H, W) of the image.
    """
    ratio = jnp.sqrt(share)
    height, width = ((side * ratio).astype(jnp.int32) for side in shape)
    return inside(centre[:, 0] - height // 2, centre[:, 1] - width // 2, height, width, shape)
