"""One ResNet, assembled from a stem, four stages of residual blocks, and a linear head."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.models.blocks import BLOCKS
from flax_resnet.models.layers import BatchNorm, Classifier, Conv, max_pool


class ResNet(nn.Module):
    """Residual network for [N, H, W, 3] images, modules named as in torchvision.

    Attributes:
      block: a key of `BLOCKS`.
      depths: blocks per stage; each stage after the first halves the map and doubles the width.
      width: channels of the stem and of the first stage's convolutions.
      num_classes: size of the logits.
      stem: a key of `STEMS`.
      dtype: compute dtype; parameters, statistics and logits are at least float32.
      zero_init_last: start the last scale of every block at 0, so that blocks start as identities
        (Goyal et al. 2017, section 5.1).
      norm_momentum: of `BatchNorm`, in torch's sense.
      norm_epsilon: of `BatchNorm`.
      norm_groups: of `BatchNorm`; 1 for statistics of the global batch.

    Source: He et al. 2016, "Deep residual learning for image recognition", table 1.
    """

    block: str
    depths: tuple[int, ...]
    width: int = 64
    num_classes: int = 1000
    stem: str = "imagenet"
    dtype: Any = jnp.float32
    zero_init_last: bool = False
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    norm_groups: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps normalised images to logits.

        Args:
          images: float [N, H, W, 3].
          train: normalise by the batch and update `batch_stats` (pass it as mutable).

        Returns:
          Logits [N, num_classes], at least float32.
        """
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            groups=self.norm_groups,
            dtype=self.dtype,
        )
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        block = partial(
            BLOCKS[self.block],
            conv=conv,
            norm=norm,
            last_scale_init=zeros if self.zero_init_last else ones,
        )

        size, stride, pooled = STEMS[self.stem]
        x = conv(self.width, size, stride, name="conv1")(images.astype(self.dtype))
        x = nn.relu(norm(name="bn1")(x, train=train))
        if pooled:
            x = max_pool(x, size=3, stride=2, padding=1)
        for stage, depth in enumerate(self.depths):
            width = self.width * 2**stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                project = stride != 1 or x.shape[-1] != width * BLOCKS[self.block].expansion
                name = f"layer{stage + 1}_{index}"
                x = block(width=width, stride=stride, project=project, name=name)(x, train=train)
        x = x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Classifier(self.num_classes, self.dtype, name="fc")(x)


# kernel size, stride, whether a 3x3/2 max-pool follows
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False)}
