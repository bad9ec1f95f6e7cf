"""Options of `ResNet` that are each valid but do not fit together."""

from collections.abc import Callable
from typing import NamedTuple

from flax_resnet.errors import ConfigError
from flax_resnet.models.blocks import BLOCKS, BlockRow
from flax_resnet.models.layers.normalization import NORMS
from flax_resnet.models.layers.pooling import ANTI_ALIAS, GLOBAL_POOLS
from flax_resnet.models.resnet import ResNet, block_specs
from flax_resnet.models.shortcuts import SHORTCUTS
from flax_resnet.models.stems import STEMS
from flax_resnet.settings import Clash, refuse


class Built(NamedTuple):
    """A network and its name."""

    name: str
    model: ResNet


def _clash(
    when: Callable[[ResNet], bool], key: str, *others: str, reason: str, cure: str = ""
) -> Clash:
    """Return the clash of the option `key` with other options; `reason` says why they do not fit together."""
    values = " and ".join(f"model.{one}={{c.model.{one}!r}}" for one in others)
    return Clash(
        key=f"model.{key}",
        when=lambda c: when(c.model),
        problem=f"{reason} ({{c.name}})",
        allowed=values and f"compatible with {values}",
        cure=cure,
    )


def _changed(n: ResNet, key: str) -> bool:
    return getattr(n, key) != getattr(ResNet, key)


def _only(has: Callable[[BlockRow], bool]) -> str:
    return f"only {' and '.join(row.name for row in BLOCKS.values() if has(row))} blocks"


def _filters(n: ResNet) -> bool:
    return ANTI_ALIAS[n.anti_alias].filter is not None


def _has_expanding_1x1(n: ResNet) -> bool:
    """Return whether a normalisation follows the last 1x1 of the blocks, or a projection."""
    projects = SHORTCUTS[n.shortcut].has_kernel or n.shortcut == "average"
    return not n.is_preact and (projects or any(b.starts_with_1x1 for b in n.blocks))


def _fixed_by_pruning(key: str) -> Clash:
    return _clash(
        lambda n: bool(n.block_widths) and _changed(n, key),
        *(key, "block_widths"),
        reason="the channels of a pruned network are fixed",
    )


def _of_grouped_blocks(key: str, words: str) -> Clash:
    return _clash(
        lambda n: _changed(n, key) and not all(b.is_grouped for b in n.blocks),
        *(key, "block"),
        reason=f"{_only(lambda b: b.is_grouped)} have {words}",
    )


SHAPES = (
    _clash(
        lambda n: len(n.depths) != len(n.widths),
        *("depths", "widths"),
        reason="each needs one number per stage",
    ),
    _clash(
        lambda n: len(n.blocks) != len(n.depths),
        *("block", "depths"),
        reason="one block for all stages, or one per stage",
    ),
    _clash(
        lambda n: bool(n.block_widths) and tuple(map(len, n.block_widths)) != n.depths,
        *("depths", "block_widths"),
        reason="the number of blocks of a pruned network is fixed",
    ),
    *map(_fixed_by_pruning, ("widths", "base_width", "reduce_first")),
)

# What not every block can do.
BLOCK_OPTIONS = (
    _clash(
        lambda n: len({b.is_preact for b in n.blocks}) > 1,
        "block",
        reason="pre-activation and post-activation blocks cannot be mixed",
    ),
    _of_grouped_blocks("cardinality", "grouped convolutions"),
    _of_grouped_blocks("base_width", "a 3x3 of another width"),
    _clash(
        lambda n: n.stride_first and not all(b.starts_with_1x1 for b in n.blocks),
        *("stride_first", "block"),
        reason=f"{_only(lambda b: b.starts_with_1x1)} have a 1x1 before the 3x3",
    ),
    _clash(
        lambda n: n.collapse == "on" and not _has_expanding_1x1(n),
        *("collapse", "block", "shortcut"),
        reason="no 1x1 convolution stands before a batch normalisation",
    ),
    _clash(
        lambda n: _filters(n) and not all(b.takes_filter for b in n.blocks),
        *("anti_alias", "block"),
        reason=f"the filter follows an activated 3x3, which {_only(lambda b: b.takes_filter)} have",
    ),
    _clash(
        lambda n: n.stride_first and _filters(n),
        *("stride_first", "anti_alias"),
        reason="the filter replaces the stride of the 3x3",
    ),
    _clash(
        lambda n: n.shortcut_size > 1 and not all(b.takes_shortcut_size for b in n.blocks),
        *("shortcut_size", "block"),
        reason=f"{_only(lambda b: b.takes_shortcut_size)} have a shortcut of another kernel size",
    ),
    _clash(
        lambda n: n.is_preact and NORMS[n.norm].has_activation and _changed(n, "act"),
        *("act", "norm", "block"),
        reason="the normalisation has an activation of its own, and pre-activation blocks use no other",
    ),
)

SHORTCUT_OPTIONS = (
    _clash(
        lambda n: n.shortcut_size > 1 and not SHORTCUTS[n.shortcut].has_kernel,
        *("shortcut_size", "shortcut"),
        reason="the shortcut is no convolution at the block's stride",
    ),
    _clash(
        lambda n: n.zero_init_last and not SHORTCUTS[n.shortcut].is_added,
        *("zero_init_last", "shortcut"),
        reason="without shortcuts, the output of every block would start at zero",
    ),
    _clash(
        lambda n: n.drop_path > 0 and not SHORTCUTS[n.shortcut].is_added,
        *("drop_path", "shortcut"),
        reason="without shortcuts, no block can be skipped",
    ),
)

ENDS = (
    _clash(
        lambda n: n.output_stride != ResNet.output_stride and STEMS[n.stem].stride == 1,
        *("output_stride", "stem"),
        reason="the stem does not reduce the map",
    ),
    _clash(
        lambda n: _filters(n) and not n.pool.takes_filter,
        *("stem_pool", "anti_alias"),
        reason="the filter would replace the pool",
    ),
    _clash(
        lambda n: GLOBAL_POOLS[n.global_pool].keeps_map and n.num_classes > 0,
        *("global_pool", "num_classes"),
        reason="the head needs a pooled map",
        cure="set model.num_classes=0 to leave the head out",
    ),
    _clash(
        lambda n: n.dropout > 0 and n.dropout_at == "head" and not n.num_classes,
        *("dropout", "num_classes"),
        reason="without a head, no layer has dropout",
    ),
)

CLASHES = (*SHAPES, *BLOCK_OPTIONS, *SHORTCUT_OPTIONS, *ENDS)


def check_resnet(name: str, model: ResNet) -> None:
    """Raise ConfigError if options conflict, channels are zero or not divisible, or blocks to scan differ."""
    refuse(CLASHES, Built(name, model))

    def fail(key: str, reason: str) -> None:
        keys = ("widths", "stem_width", "base_width", "cardinality", "reduce_first")
        values = ", ".join(f"{one}={getattr(model, one)}" for one in keys if one != key)
        raise ConfigError(
            f"{reason} ({name} with {values})", key=f"model.{key}", value=getattr(model, key)
        )

    channels = model.stem_channels
    if min(int(channels * share) for _, _, share in STEMS[model.stem].layers) < 1:
        key = "stem_width" if model.stem_width else "widths"
        fail(key, f"the {model.stem} stem would have a convolution without channels")
    for number, specs in enumerate(block_specs(model), 1):
        for spec in specs:
            if min(spec.channels) < 1:
                fail("widths", f"a convolution of stage {number} would have no channels")
            grouped = BLOCKS[spec.kind].is_grouped
            if grouped and any(c % model.cardinality for c in spec.channels[:-1]):
                fail("cardinality", f"the groups do not divide {spec.channels[:-1]} channels")
            if SHORTCUTS[model.shortcut].keeps_channels and spec.channels[-1] < channels:
                fail("shortcut", f"can only add channels, and stage {number} has fewer")
            channels = spec.channels[-1]
        if model.scan_blocks and len({spec._replace(drop_path=0.0) for spec in specs[1:]}) > 1:
            fail("scan_blocks", f"the blocks of stage {number} differ")
