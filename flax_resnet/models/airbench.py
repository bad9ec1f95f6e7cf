"""The small network of airbench94, for fast training to 94 % on CIFAR-10; its first layer whitens the data."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.call_checks import check_call
from flax_resnet.models.last_map import LastMap
from flax_resnet.models.layers.activations import gelu
from flax_resnet.models.layers.convolution import (
    Conv,
    Linear,
    at_least_float32,
    convolution,
    he_normal_fan_out,
    torch_uniform_init,
)
from flax_resnet.models.layers.normalization import BatchNorm
from flax_resnet.models.network import Stages
from flax_resnet.ops import dispatch
from flax_resnet.ops.max_pool import max_pool

AIRBENCH: dict[str, dict[str, Any]] = {"airbench94": dict(widths=(64, 256, 256), num_classes=10)}
LOGIT_SCALE = 1 / 9
WHITENING_SIZE = 2
EPSILON = 5e-4  # added to the variances of the patches, some of which are small


def identity_first(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise a kernel [K, K, I, O], O >= I: the first I outputs copy the inputs; others use torch's default.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.3.
    """
    size, _, inputs, outputs = shape
    drawn = torch_uniform_init(size * size * inputs)(key, shape, dtype)
    center = size // 2
    copies = min(inputs, outputs)
    identity = jnp.zeros((size, size, inputs, copies), dtype)
    identity = identity.at[center, center].set(jnp.eye(inputs, copies, dtype=dtype))
    return drawn.at[..., :copies].set(identity)


class Whitening(nn.Module):
    """Whitening 2x2 convolution without padding.

    The kernel [2, 2, C, 8 C] is a statistic of the data in `batch_stats`, measured before the first training step.
    It is not a parameter: it gets no gradient and no weight decay. The bias [8 C] is a parameter.

    Attributes:
      dtype: compute dtype.
    """

    dtype: Any = jnp.float32

    stride, dilation, groups = 1, 1, 1  # the attributes of `Conv`, for summaries

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, H, W, C] to [N, H - 1, W - 1, 8 C]."""
        channels, dtype = x.shape[-1], at_least_float32(self.dtype)
        outputs = 2 * WHITENING_SIZE**2 * channels
        shape = (WHITENING_SIZE, WHITENING_SIZE, channels, outputs)
        kernel = self.variable(
            "batch_stats",
            "kernel",
            lambda: he_normal_fan_out(self.make_rng("params"), shape, dtype),
        )
        bias = self.param("bias", nn.initializers.zeros, (outputs,), dtype)
        y = convolution(x.astype(self.dtype), kernel.value.astype(self.dtype))
        y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return dispatch.gradient_fusion_barrier(y, "cpu")


def patch_moments(images: jax.Array) -> jax.Array:
    """Return the second moments [P, P], P = 4 C, of the 2x2 patches of normalised images [N, H, W, C]."""
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


def whitening_filters(moments: np.ndarray) -> np.ndarray:
    """Return the whitening kernel [2, 2, C, 8 C]: eigenvectors / sqrt(variance + EPSILON), and their negatives.

    Args:
      moments: [4 C, 4 C], from `patch_moments`.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.2, after Page 2019, "How to
    train your ResNet".
    """
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    # Largest variance first. The sign of an eigenvector depends on the library: make its largest entry positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    scaled = (vectors * signs / np.sqrt(values + EPSILON))[:, ::-1]
    shape = (WHITENING_SIZE, WHITENING_SIZE, len(values) // WHITENING_SIZE**2, 2 * len(values))
    return np.concatenate([scaled, -scaled], axis=1).reshape(shape).astype(np.float32)


class Group(nn.Module):
    """Two 3x3 convolutions, each normalised and activated, with a 2x2 max-pool after the first.

    Attributes:
      features: output channels of both convolutions.
      norm: constructor of the normalisation.
      act: the activation.
      dtype: compute dtype.
    """

    features: int
    norm: Any
    act: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, I] to [N, H // 2, W // 2, features]."""
        conv = partial(Conv, self.features, 3, dtype=self.dtype, kernel_init=identity_first)
        x = max_pool(conv(name="conv1")(x), size=2, stride=2)
        x = self.norm(act=self.act, name="bn1")(x, train=train)
        x = conv(name="conv2")(x)
        return self.norm(act=self.act, name="bn2")(x, train=train)


class Airbench(nn.Module):
    """A whitening 2x2 convolution, groups of two 3x3 convolutions, global max-pooling, and logits divided by 9.

    Attributes:
      widths: channels of each group.
      num_classes: size of the logits; 0 for a network without a head, which returns the pooled last map.
      in_channels: channels of the images.
      norm_momentum: momentum of `BatchNorm`, in torch's sense.
      norm_epsilon: epsilon of `BatchNorm`.
      norm_groups: groups of `BatchNorm`; 1 for statistics of the global batch.
      dtype: compute dtype; parameters, statistics and logits are at least float32.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", appendix A.
    """

    widths: tuple[int, ...]
    num_classes: int = 10
    in_channels: int = 3
    norm_momentum: float = 0.4
    norm_epsilon: float = 1e-12
    norm_groups: int = 1
    dtype: Any = jnp.float32

    # required by `Network`
    head, initializes_from_data, measures_batches, image_size = "fc", True, True, 32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        features: tuple[str, ...] = (),
        drop_factor: float | jax.Array = 1.0,
    ) -> Any:
        """Map normalised images to logits or features. Arguments and errors are those of `ResNet.__call__`."""
        del drop_factor  # this network has no dropout
        check_call(self, images, features)
        norm = partial(
            BatchNorm,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            groups=self.norm_groups,
            dtype=self.dtype,
        )
        outputs: dict[str, jax.Array] = {}
        x = outputs["stem"] = gelu(Whitening(self.dtype, name="conv1")(images))
        for number, width in enumerate(self.widths, 1):
            group = Group(width, norm, gelu, self.dtype, name=f"layer{number}_0")
            x = outputs[f"stage{number}"] = group(x, train=train)
        x = LastMap(name="last_map")(x).max(axis=(1, 2))
        outputs["pre_logits"] = x
        if self.num_classes:
            dtype = at_least_float32(self.dtype)
            head = Linear(self.num_classes, dtype, bias=False, name="fc")
            x = outputs["logits"] = LOGIT_SCALE * head(x)
        return {name: outputs[name] for name in features} if features else x

    def stages(self) -> Stages:
        """Return the module names of every block, by stage."""
        return tuple(((f"layer{number}_0",),) for number in range(1, len(self.widths) + 1))

    def data_statistics(self, images: jax.Array) -> jax.Array:
        """Return the `patch_moments` of normalised images [N, H, W, C]."""
        return patch_moments(images)

    def initialized(self, batch_stats: Any, statistics: np.ndarray) -> dict[str, Any]:
        """Return `batch_stats` with the `whitening_filters` of moments [4 C, 4 C] as the first layer's kernel."""
        return {**batch_stats, "conv1": {"kernel": whitening_filters(statistics)}}

    def feature_info(self) -> dict[str, tuple[int, int]]:
        """Return the stride (0 for a vector) and the channels of every named feature, in order."""
        info = {"stem": (1, 2 * WHITENING_SIZE**2 * self.in_channels)}
        for number, width in enumerate(self.widths, 1):
            info[f"stage{number}"] = (2**number, width)
        info["pre_logits"] = (0, self.widths[-1])
        if self.num_classes:
            info["logits"] = (0, self.num_classes)
        return info
