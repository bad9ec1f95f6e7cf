"""The data that blocks are built from: the shape of one block, and the parts that all blocks of a network share."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from flax_resnet.models.layers.convolution import Array


class BlockSpec(NamedTuple):
    """The shape of one block.

    Attributes:
      kind: name of the block's row.
      channels: output channels of each convolution; the last number is the block's output channels.
      nominal: output channels that set the size of attention; a pruned network keeps the unpruned number.
      stride: stride from input to output.
      dilation: dilation of the 3x3 convolutions.
      first_dilation: dilation of the first 3x3. In the first block of a dilated stage, it is the dilation of the
        previous stage.
      project: whether the shortcut changes the map. It cannot be derived from shapes: on a 1x1 map, a strided block
        of constant width changes no shape, but needs its projection.
      drop_path: probability that an example skips the residual branch in training.
    """

    kind: str
    channels: tuple[int, ...]
    nominal: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    project: bool = False
    drop_path: float = 0.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """Modules and options that all blocks of a network share.

    Attributes:
      conv: convolution module, called with (features, size, ..., name=).
      norm: normalisation module that includes the activation unless act=None; called with `train`.
      act: the activation.
      act_of_sum: the activation of the sum of branch and shortcut: the same function.
      collapses: (map, output channels, stride=) -> whether training computes a 1x1 convolution of the map and the
        normalisation behind it as one product; None for never.
      attention: channel attention module, called with (channels, name=); None for none.
      anti_alias: low-pass filter, called with (x, stride=) after a 3x3 to apply its stride; None for none.
      shortcut: name of the shortcut's row.
      shortcut_size: kernel size of a strided projection.
      cardinality: groups of the 3x3 of a bottleneck.
      stride_first: whether the stride is in the first 1x1 of a bottleneck ("v1"), not in its 3x3 ("v1.5").
      dropout: rate of dropout before the last convolution.
      zero_init_last: whether the residual branch is initialised to zero.
    """

    conv: Any
    norm: Any
    act: Any
    act_of_sum: Any
    collapses: Any = None
    attention: Any = None
    anti_alias: Any = None
    shortcut: str = "projection"
    shortcut_size: int = 1
    cardinality: int = 1
    stride_first: bool = False
    dropout: float = 0.0
    zero_init_last: bool = False

    def conv_norm(
        self,
        x: Array,
        train: bool,
        conv: tuple[str, int],
        norm: str,
        *,
        stride: int = 1,
        pools: bool = False,
        **options: Any,
    ) -> tuple[Array, Array | None]:
        """Apply a 1x1 convolution and its normalisation, as one product where that is faster.

        Args:
          x: [N, H, W, C].
          train: whether to use the statistics of the batch.
          conv: name and features of the convolution.
          norm: name of the normalisation.
          stride: step of the convolution.
          pools: whether the caller needs the mean of each image.
          **options: options of the normalisation.

        Returns:
          The result, and the means of its images [N, features] if `pools`; None if they are not known.
        """
        name, features = conv
        lazy = bool(train and self.collapses and self.collapses(x, features, stride=stride))
        product = self.conv(features, 1, stride=stride, name=name)(x, lazy=lazy)
        layer = self.norm(name=norm, **options)
        if lazy and pools:
            return layer(product, train=train, pools=True)
        return layer(product, train=train), None

    @property
    def last(self) -> dict[str, Any]:
        """Options of the last normalisation: no activation, and the initialiser of its scale."""
        scale = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        return {"act": None, "scale_init": scale}

    @property
    def last_conv(self) -> dict[str, Any]:
        """Options of the last convolution of a pre-activation block: the initialiser of its kernel."""
        return {"kernel_init": nn.initializers.zeros} if self.zero_init_last else {}
