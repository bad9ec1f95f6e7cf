"""The ResNet: a stem, stages of residual blocks, and a linear head."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.models.block_spec import BlockSpec, Parts
from flax_resnet.models.blocks import BLOCKS, BlockRow
from flax_resnet.models.call_checks import check_call
from flax_resnet.models.last_map import LastMap
from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.attention import attention_layer
from flax_resnet.models.layers.convolution import Conv, Linear, at_least_float32
from flax_resnet.models.layers.dropout import Dropout, scaled
from flax_resnet.models.layers.normalization import NORMS, norm_layer
from flax_resnet.models.layers.pooling import ANTI_ALIAS, GLOBAL_POOLS
from flax_resnet.models.network import Stages
from flax_resnet.models.stems import STEM_POOLS, STEMS, StemPoolRow, apply_stem
from flax_resnet.ops.collapsed import collapses


class ResNet(nn.Module):
    """Residual network for images [N, H, W, C], with modules named as in torchvision.

    Some fields name a row of a registry, as `stem` of `STEMS`. The rows say what they do.

    Attributes:
      block: the name of a row of `BLOCKS` for all stages, or a tuple with one name per stage.
      depths: blocks per stage; each stage after the first halves the map.
      widths: channels of each stage's 3x3 convolutions; bottlenecks have four times as many output channels.
      num_classes: size of the logits; 0 for a network without a head, which returns the pooled map.
      in_channels: channels of the images.
      stem: a row of `STEMS`.
      stem_width: output channels of the stem; 0 for those of the first stage.
      stem_pool: a row of `STEM_POOLS`; empty for the stem's default.
      cardinality: groups of a bottleneck's 3x3 (ResNeXt).
      base_width: sets the channels of a bottleneck's 3x3: widths x base_width / 64 x cardinality.
      reduce_first: divisor of the channels of a block's first convolution (SENet).
      block_widths: channels of each convolution, per stage and block (pruned networks); empty to derive them from
        `widths`.
      stride_first: whether the stride of a bottleneck is in its first 1x1 ("v1"), not in its 3x3 ("v1.5").
      shortcut: a row of `SHORTCUTS`, for blocks that change the map.
      shortcut_size: kernel size of a strided projection.
      output_stride: stride of the last stage, 8, 16 or 32: later stages are dilated instead of strided.
      attention: a row of `ATTENTION`, at the end of each block.
      attention_ratio: hidden width of squeeze-and-excitation / channels.
      anti_alias: a row of `ANTI_ALIAS`, which replaces strides.
      norm: a row of `NORMS`.
      norm_momentum: momentum of `BatchNorm`, in torch's sense.
      norm_epsilon: epsilon of the normalisation.
      norm_groups: groups of `BatchNorm`; 1 for statistics of the global batch.
      collapse: when a 1x1 convolution and the `BatchNorm` behind it are one product, in training: "auto", "on",
        "off"; see `ops.collapsed.collapses`.
      act: a row of `ACTIVATIONS`.
      standardize: epsilon of weight standardisation of the convolutions; None for none.
      dropout: rate of dropout, before the head or within the blocks.
      dropout_at: "head" or "blocks".
      drop_path: rate of stochastic depth in the last block. The rate rises linearly from 0 in the first block
        (Huang et al. 2016, section 3).
      zero_init_last: whether residual branches are initialised to zero, so that blocks start as identities
        (Goyal et al. 2017, section 5.1).
      global_pool: a row of `GLOBAL_POOLS`.
      remat: unit whose activations the backward pass recomputes to save memory: "none", "block" or "stage".
      scan_blocks: whether the identical blocks of a stage run as one `nn.scan`, which compiles faster. Their
        variables are then stacked; `models.stacking` converts in both directions.
      dtype: compute dtype; parameters, statistics and logits are at least float32.

    Source: He et al. 2016, "Deep residual learning for image recognition", table 1.
    """

    block: str | tuple[str, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_classes: int = 1000
    in_channels: int = 3
    stem: str = "imagenet"
    stem_width: int = 0
    stem_pool: str = ""
    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1
    block_widths: tuple = ()
    stride_first: bool = False
    shortcut: str = "projection"
    shortcut_size: int = 1
    output_stride: int = 32
    attention: str = "none"
    attention_ratio: float = 1 / 16
    anti_alias: str = "none"
    norm: str = "batch"
    norm_momentum: float = 0.1
    norm_epsilon: float = 1e-5
    norm_groups: int = 1
    collapse: str = "auto"
    act: str = "relu"
    standardize: float | None = None
    dropout: float = 0.0
    dropout_at: str = "head"
    drop_path: float = 0.0
    zero_init_last: bool = False
    global_pool: str = "avg"
    remat: str = "none"
    scan_blocks: bool = False
    dtype: Any = jnp.float32

    head, initializes_from_data = "fc", False  # required by `Network`

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        features: tuple[str, ...] = (),
        drop_factor: float | jax.Array = 1.0,
    ) -> Any:
        """Map normalised images to logits, or to feature maps.

        Args:
          images: float [N, H, W, in_channels].
          train: whether to normalise by the batch and update `batch_stats` (pass it as mutable), and to apply
            dropout and stochastic depth, which use the stream `dropout`.
          features: names from `feature_info()` to return instead of the logits.
          drop_factor: factor of the rates `dropout` and `drop_path` in training, from 0 to 1: a float, or a float32
            scalar, which may be traced.

        Returns:
          Logits [N, num_classes], at least float32; or, with `features`, a dict of arrays by name:
          maps [N, H / stride, W / stride, channels], `pre_logits` [N, channels] and `logits`.

        Raises:
          ConfigError: a feature does not exist, or the images have another number of channels.
        """
        check_call(self, images, features)
        outputs: dict[str, jax.Array] = {}
        act = ACTIVATIONS[self.act].apply
        parts = Parts(
            conv=partial(Conv, dtype=self.dtype, standardize=self.standardize),
            norm=norm_layer(self, act),
            act=act,
            act_of_sum=ACTIVATIONS[self.act].of_sum or act,
            collapses=partial(collapses, self.collapse, groups=self.norm_groups)
            if self.measures_batches
            else None,
            attention=attention_layer(self),
            anti_alias=ANTI_ALIAS[self.anti_alias].filter,
            shortcut=self.shortcut,
            shortcut_size=self.shortcut_size,
            cardinality=self.cardinality,
            stride_first=self.stride_first,
            dropout=self.dropout if self.dropout_at == "blocks" else 0.0,
            zero_init_last=self.zero_init_last,
        )
        x = outputs["stem"] = apply_stem(self, parts, images.astype(self.dtype), train)
        x = self.pool.apply(self, parts, x, train)
        for number, specs in enumerate(block_specs(self), 1):
            x = outputs[f"stage{number}"] = _stage(
                self, number, specs, parts, x, train, drop_factor
            )
        if self.is_preact:
            x = parts.norm(name="norm")(x, train=train)
        x = LastMap(name="last_map")(x)
        x = outputs["pre_logits"] = GLOBAL_POOLS[self.global_pool].pool(x)
        if self.num_classes:
            if self.dropout_at == "head":
                x = Dropout(self.dropout)(x, train, scaled(self.dropout, drop_factor))
            x = Linear(self.num_classes, at_least_float32(self.dtype), name="fc")(x)
            outputs["logits"] = x
        return {name: outputs[name] for name in features} if features else x

    @property
    def is_preact(self) -> bool:
        """Whether normalisation and activation come before the convolutions of a block."""
        return self.blocks[0].is_preact

    @property
    def blocks(self) -> tuple[BlockRow, ...]:
        """The block of each stage."""
        names = (self.block,) * len(self.depths) if isinstance(self.block, str) else self.block
        return tuple(BLOCKS[name] for name in names)

    @property
    def measures_batches(self) -> bool:
        """Whether training normalises by the statistics of the batch."""
        return NORMS[self.norm].measures_batches

    @property
    def image_size(self) -> int:
        """The height and width of the images that the network is made for, in pixels."""
        return STEMS[self.stem].image_size

    @property
    def stem_channels(self) -> int:
        """The output channels of the stem."""
        return self.stem_width or self.widths[0]

    @property
    def pool(self) -> StemPoolRow:
        """The operation after the stem's convolutions."""
        return STEM_POOLS[self.stem_pool or STEMS[self.stem].pool]

    @property
    def stem_stride(self) -> int:
        """The stride of the stem's convolutions and of the operation after them."""
        return STEMS[self.stem].stride * self.pool.stride

    def stages(self) -> Stages:
        """Return the module names of every block by stage; `scan_blocks` joins all blocks but the first."""
        stages: list[list[tuple[str, ...]]] = []
        for number, depth in enumerate(self.depths, 1):
            blocks = ["0", "rest"][:depth] if self.scan_blocks else [str(n) for n in range(depth)]
            stages.append([(f"layer{number}_{block}",) for block in blocks])
        if self.is_preact:
            stages[-1][-1] += ("norm",)
        return tuple(map(tuple, stages))

    def feature_info(self) -> dict[str, tuple[int, int]]:
        """Return the stride (0 for a vector) and the channels of every named feature, in order."""
        info = {"stem": (STEMS[self.stem].stride, self.stem_channels)}
        stride = self.stem_stride
        for number, specs in enumerate(block_specs(self), 1):
            stride *= specs[0].stride
            info[f"stage{number}"] = (stride, specs[-1].channels[-1])
        keeps_map = GLOBAL_POOLS[self.global_pool].keeps_map
        info["pre_logits"] = (stride if keeps_map else 0, specs[-1].channels[-1])
        if self.num_classes:
            info["logits"] = (0, self.num_classes)
        return info


def block_specs(net: ResNet) -> list[list[BlockSpec]]:
    """Return the `BlockSpec` of every block by stage, derived from the fields of a network."""
    stages = []
    stride_so_far = net.stem_stride
    dilation = previous = 1
    channels, total, count = net.stem_channels, sum(net.depths), 0
    for number, (block, width, depth) in enumerate(
        zip(net.blocks, net.widths, net.depths, strict=True)
    ):
        stride = 1 if number == 0 else 2
        if stride_so_far * stride > net.output_stride:
            dilation, stride = dilation * stride, 1
        stride_so_far *= stride
        usual = block.channels(net, width)
        specs = []
        for index in range(depth):
            shape = net.block_widths[number][index] if net.block_widths else usual
            step = stride if index == 0 else 1
            changes = step != 1 or channels != shape[-1] or previous != dilation
            rate = net.drop_path * count / max(1, total - 1)
            specs.append(
                BlockSpec(block.name, shape, usual[-1], step, dilation, previous, changes, rate)
            )
            channels, previous, count = shape[-1], dilation, count + 1
        stages.append(specs)
    return stages


def _stage(
    net: ResNet,
    number: int,
    specs: list[BlockSpec],
    parts: Parts,
    x: jax.Array,
    train: bool,
    factor: float | jax.Array,
) -> jax.Array:
    """Run the blocks of one stage, named layerN_0, layerN_1, ...; with scan_blocks, layerN_0 and layerN_rest."""
    make = BLOCKS[specs[0].kind].module
    if net.remat == "block":
        make = nn.remat(make, static_argnums=(2,))  # `train`; self is argument 0
    dropout = scaled(parts.dropout, factor)

    def run(net: ResNet, x: jax.Array) -> jax.Array:
        unrolled = specs[:1] if net.scan_blocks else specs
        for index, spec in enumerate(unrolled):
            block = make(spec, parts, name=f"layer{number}_{index}")
            x = block(x, train, scaled(spec.drop_path, factor), dropout)
        if len(unrolled) == len(specs):
            return x
        rest = make(specs[1]._replace(drop_path=0.0), parts, name=f"layer{number}_rest")
        rates = np.array([s.drop_path for s in specs[1:]], np.float32) * factor
        return _scanned(rest, x, train, rates if net.drop_path else None, dropout, len(specs) - 1)

    return nn.remat(run)(net, x) if net.remat == "stage" else run(net, x)


def _scanned(
    block: nn.Module,
    x: jax.Array,
    train: bool,
    rates: jax.Array | np.ndarray | None,
    dropout: jax.Array | None,
    length: int,
) -> jax.Array:
    """Run `length` copies of a block one after the other, with variables stacked on axis 0."""

    def step(
        block: nn.Module, x: jax.Array, rate: jax.Array | np.ndarray | None
    ) -> tuple[jax.Array, None]:
        return block(x, train, rate, dropout), None

    run = nn.scan(
        step,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
    )
    return run(block, x, rates)[0]
