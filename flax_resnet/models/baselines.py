"""The baselines for residual learning: AlexNet and VGG, layer for layer as in torchvision.

(The plain networks without shortcuts, such as plain20, are variants of `ResNet`.)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.errors import ConfigError
from flax_resnet.models.call_checks import check_call
from flax_resnet.models.last_map import LastMap
from flax_resnet.models.layers.convolution import (
    Conv,
    Linear,
    at_least_float32,
    he_normal_fan_out,
    torch_uniform_init,
)
from flax_resnet.models.layers.dropout import Dropout, scaled
from flax_resnet.models.layers.normalization import BatchNorm
from flax_resnet.models.layers.pooling import adaptive_average_pool
from flax_resnet.models.network import Stages
from flax_resnet.ops.max_pool import max_pool

# Convolutions as (channels, size, stride, padding); "M" is a max-pool.
ALEXNET = (
    *((64, 11, 4, 2), "M", (192, 5, 1, 2), "M"),
    *((384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "M"),
)


def _vgg(*blocks: int) -> tuple:
    """Return VGG's layers: five blocks of 3x3 convolutions, of the given lengths, each followed by a max-pool.

    Source: Simonyan and Zisserman 2015, table 1.
    """
    layers: list = []
    for number, channels in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        layers += [(channels, 3, 1, 1)] * number + ["M"]
    return tuple(layers)


VGG = {
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
}
PLAIN: dict[str, dict[str, Any]] = {
    "alexnet": dict(layers=ALEXNET, pool=(3, 2), map_size=6, dropout_first=True),
    **{name: dict(layers=layers) for name, layers in VGG.items()},
}
NORMALIZED: dict[str, dict[str, Any]] = {
    f"{name}_bn": dict(layers=layers, batch_norm=True) for name, layers in VGG.items()
}
BASELINES = {**PLAIN, **NORMALIZED}
# The fields of `ConvNet` that make a network what it is, and those that only a network with normalisation uses.
FIXED_FIELDS = ("layers", "pool", "map_size", "batch_norm", "dropout_first")
NORM_FIELDS = ("norm_momentum", "norm_epsilon", "norm_groups")


class ConvNet(nn.Module):
    """A sequence of convolutions and max-pools, followed by three linear layers.

    Attributes:
      layers: (channels, kernel size, stride, padding) of a convolution with ReLU, or "M" for a max-pool.
      num_classes: size of the logits; 0 for a network without a head, which returns the last hidden layer.
      in_channels: channels of the images.
      pool: window and stride of the max-pools.
      map_size: height and width to which the map is averaged before the linear layers.
      batch_norm: whether batch normalisation follows each convolution.
      norm_momentum: momentum of `BatchNorm`, in torch's sense.
      norm_epsilon: epsilon of `BatchNorm`.
      norm_groups: groups of `BatchNorm`; 1 for statistics of the global batch.
      dropout: rate of dropout between the linear layers in training; uses the stream `dropout`.
      dropout_first: whether dropout comes before the first two linear layers (AlexNet) or after them (VGG).
      dtype: compute dtype; parameters and logits are at least float32.

    Source: Krizhevsky 2014, "One weird trick", for AlexNet; Simonyan and Zisserman 2015 for VGG.
    """

    layers: tuple
    num_classes: int = 1000
    in_channels: int = 3
    pool: tuple[int, int] = (2, 2)
    map_size: int = 7
    batch_norm: bool = False
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    norm_groups: int = 1
    dropout: float = 0.5
    dropout_first: bool = False
    dtype: Any = jnp.float32

    head, initializes_from_data, image_size = "classifier_6", False, 224  # required by `Network`

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        features: tuple[str, ...] = (),
        drop_factor: float | jax.Array = 1.0,
    ) -> Any:
        """Map normalised images to logits or features. Arguments and errors are those of `ResNet.__call__`.

        Raises:
          ConfigError: as in `ResNet.__call__`, or the images are too small for the pools.
        """
        check_call(self, images, features)
        outputs: dict[str, jax.Array] = {}
        x, index, stage = images.astype(self.dtype), 0, 1
        for layer in self.layers:
            if layer == "M":
                outputs[f"stage{stage}"] = x
                x, index, stage = (
                    max_pool(x, size=self.pool[0], stride=self.pool[1]),
                    index + 1,
                    stage + 1,
                )
                continue
            channels, size, stride, padding = layer
            # Initialise as torchvision: VGG by fan-out, AlexNet by torch's default.
            init = (
                torch_uniform_init(size**2 * x.shape[-1])
                if self.dropout_first
                else he_normal_fan_out
            )
            x = Conv(
                channels, size, stride=stride, padding=padding, bias=True, dtype=self.dtype,
                kernel_init=init, name=f"features_{index}",
            )(x)  # fmt: skip
            if self.batch_norm:
                x = BatchNorm(
                    dtype=self.dtype,
                    momentum=self.norm_momentum,
                    epsilon=self.norm_epsilon,
                    groups=self.norm_groups,
                    name=f"features_{index + 1}",
                )(x, train=train)
                index += 1
            x, index = nn.relu(x), index + 2
        if min(x.shape[1:3]) < 1:
            raise ConfigError("too small for this network", key="images", value=images.shape)
        x = LastMap(name="last_map")(x)
        x = adaptive_average_pool(x, self.map_size)
        # torch flattens [C, H, W], and the weights of the first linear layer expect that order.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        first = 1 if self.dropout_first else 0
        for index in (first, first + 3):
            x = self._dropped(x, train, drop_factor) if self.dropout_first else x
            x = nn.relu(self._linear(4096, f"classifier_{index}", self.dtype)(x))
            x = x if self.dropout_first else self._dropped(x, train, drop_factor)
        outputs["pre_logits"] = x
        if self.num_classes:
            x = self._linear(self.num_classes, "classifier_6", at_least_float32(self.dtype))(x)
            outputs["logits"] = x
        return {name: outputs[name] for name in features} if features else x

    def _linear(self, features: int, name: str, dtype: Any) -> Linear:
        init = None if self.dropout_first else nn.initializers.normal(0.01)
        return Linear(features, dtype, init, name=name)

    def _dropped(self, x: jax.Array, train: bool, factor: float | jax.Array) -> jax.Array:
        return Dropout(self.dropout)(x, train, scaled(self.dropout, factor))

    @property
    def measures_batches(self) -> bool:
        """Whether training normalises by the statistics of the batch."""
        return self.batch_norm

    def stages(self) -> Stages:
        """Return no stages: the network has no residual blocks."""
        return ()

    def feature_info(self) -> dict[str, tuple[int, int]]:
        """Return the stride (0 for a vector) and the channels of every named feature, in order.

        `stageN` is the map before the N-th max-pool.
        """
        info: dict[str, tuple[int, int]] = {}
        stride, channels = 1, self.in_channels
        for layer in self.layers:
            if layer == "M":
                info[f"stage{len(info) + 1}"] = (stride, channels)
                stride *= self.pool[1]
            else:
                channels, stride = layer[0], stride * layer[2]
        info["pre_logits"] = (0, 4096)
        if self.num_classes:
            info["logits"] = (0, self.num_classes)
        return info
