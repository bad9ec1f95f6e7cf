"""Build a network from its name and options, with error messages that name the invalid option."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.models.airbench import AIRBENCH, Airbench
from flax_resnet.models.baselines import BASELINES, ConvNet
from flax_resnet.models.blocks import BLOCKS, SHORTCUTS
from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.attention import ATTENTION
from flax_resnet.models.layers.pooling import ANTI_ALIAS, GLOBAL_POOLS
from flax_resnet.models.resnet import NORMS, ResNet, block_specs
from flax_resnet.models.stems import STEM_POOLS, STEMS
from flax_resnet.models.variants import VARIANTS

CHOICES: dict[str, tuple] = {
    "block": tuple(BLOCKS),
    "stem": tuple(STEMS),
    "stem_pool": ("", *STEM_POOLS),
    "shortcut": tuple(SHORTCUTS),
    "shortcut_size": (1, 3),
    "output_stride": (8, 16, 32),
    "attention": ("none", *ATTENTION),
    "anti_alias": ("none", *ANTI_ALIAS),
    "norm": tuple(NORMS),
    "act": tuple(ACTIVATIONS),
    "dropout_at": ("head", "blocks"),
    "global_pool": tuple(GLOBAL_POOLS),
    "remat": ("none", "block", "stage"),
}
LEAST = {
    "num_classes": 0, "in_channels": 1, "stem_width": 0, "cardinality": 1, "base_width": 1,
    "reduce_first": 1, "norm_groups": 1, "norm_momentum": 0, "norm_epsilon": 0,
    "attention_ratio": 0, "standardize": 0, "dropout": 0, "drop_path": 0, "depths": 1, "widths": 1,
}  # fmt: skip
BELOW = {"dropout": 1, "drop_path": 1, "norm_momentum": 1.000001}
COMPUTE_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Family(NamedTuple):
    """Networks that are the same module with different field values.

    Attributes:
      make: the module class.
      rows: network name -> field values.
      options: the fields that a user may set.
    """

    make: type[nn.Module]
    rows: dict[str, dict[str, Any]]
    options: frozenset[str]


def _fields(make: type[nn.Module], *fixed: str) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(make)) - {"parent", "name", *fixed}


FAMILIES = (
    Family(ResNet, VARIANTS, _fields(ResNet, "block_widths")),
    Family(ConvNet, BASELINES, frozenset({"num_classes", "in_channels", "dtype", "dropout"})),
    Family(Airbench, AIRBENCH, _fields(Airbench)),
)


class Clash(NamedTuple):
    """A combination of ResNet options that are each valid but conflict.

    Attributes:
      holds: returns whether the options conflict.
      options: the options; the error's key is the first one.
      reason: why they conflict.
      cure: what the user can do; empty if the reason says it.
    """

    holds: Callable[[ResNet], bool]
    options: tuple[str, ...]
    reason: str
    cure: str = ""


def _any_block(net: ResNet, *kinds: str) -> bool:
    return bool({*net.blocks} & {*kinds})


CLASHES = (
    Clash(
        lambda n: len(n.depths) != len(n.widths),
        ("depths", "widths"),
        "each needs one number per stage",
    ),
    Clash(
        lambda n: len(n.blocks) != len(n.depths),
        ("block", "depths"),
        "one block for all stages, or one per stage",
    ),
    Clash(
        lambda n: len({b.startswith("preact") for b in n.blocks}) > 1,
        ("block",),
        "pre-activation and post-activation blocks cannot be mixed",
    ),
    Clash(
        lambda n: n.cardinality > 1 and _any_block(n, "basic", "preact_basic"),
        ("cardinality", "block"),
        "only bottlenecks have grouped convolutions",
    ),
    Clash(
        lambda n: n.stride_first and _any_block(n, "basic", "preact_basic"),
        ("stride_first", "block"),
        "only bottlenecks have a 1x1 before the 3x3",
    ),
    Clash(
        lambda n: n.stride_first and n.anti_alias != "none",
        ("stride_first", "anti_alias"),
        "the filter replaces the stride of the 3x3",
    ),
    Clash(
        lambda n: n.is_preact and n.attention != "none",
        ("attention", "block"),
        "attention follows the last normalisation, which pre-activation blocks do not have",
    ),
    Clash(
        lambda n: n.is_preact and n.anti_alias != "none",
        ("anti_alias", "block"),
        "the filter follows an activated 3x3, but pre-activation blocks activate before the 3x3",
    ),
    Clash(
        lambda n: n.shortcut_size > 1 and (n.shortcut != "projection" or n.is_preact),
        ("shortcut_size", "shortcut"),
        "only the projection of a post-activation block can have another kernel size",
    ),
    Clash(
        lambda n: n.shortcut == "none" and n.zero_init_last,
        ("zero_init_last", "shortcut"),
        "without shortcuts, the output of every block would start at zero",
    ),
    Clash(
        lambda n: n.shortcut == "none" and n.drop_path > 0,
        ("drop_path", "shortcut"),
        "without shortcuts, no block can be skipped",
    ),
    Clash(
        lambda n: n.norm_groups > 1 and n.norm != "batch",
        ("norm_groups", "norm"),
        "only batch normalisation splits the batch into groups",
    ),
    Clash(
        lambda n: n.global_pool == "none" and n.num_classes > 0,
        ("global_pool", "num_classes"),
        "the head needs a pooled map",
        "set model.num_classes=0 to leave the head out",
    ),
    Clash(
        lambda n: n.output_stride < 32 and n.stem == "cifar",
        ("output_stride", "stem"),
        "the cifar stem does not reduce the map",
    ),
    Clash(
        lambda n: bool(n.block_widths) and tuple(map(len, n.block_widths)) != n.depths,
        ("depths", "block_widths"),
        "the number of blocks of a pruned network is fixed",
    ),
)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted.

    >>> list_models("resnet18*")
    ['resnet18', 'resnet18_cifar', 'resnet18d']
    """
    return sorted(fnmatch.filter([name for family in FAMILIES for name in family.rows], pattern))


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
      name: one of `list_models()`.
      **options: fields of `ResNet` to set or override, such as ``num_classes=10``, ``stem="cifar"``,
        ``dtype="bfloat16"``, ``depths=(2, 2)``, ``widths=(32, 64)``. AlexNet and VGG accept only num_classes,
        in_channels, dtype and dropout; airbench94 accepts the fields of `Airbench`.

    Returns:
      A linen module. ``model.init(key, jnp.zeros((1, 224, 224, 3)), train=False)`` returns its variables: `params`
      and, with batch normalisation, `batch_stats`.

    Raises:
      ConfigError: the name or an option is unknown, a value is invalid, or options conflict.
    """
    families = (family for family in FAMILIES if isinstance(name, str) and name in family.rows)
    family = next(families, None)
    if not family:
        near = suggestion(str(name), list_models())
        raise ConfigError(
            key="model.name",
            value=name,
            allowed="a name of flax_resnet.list_models(), such as 'resnet50'",
            cure=near if near.startswith("did") else "",
        )
    make, known = family.make, family.options
    kinds = {f.name: type(f.default) for f in dataclasses.fields(make)}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"{name} has no such option",
                key=f"model.{key}",
                value=value,
                cure=suggestion(key, known),
            )
        options[key] = _checked(key, value, kinds[key])
    model = make(**{**family.rows[name], "dtype": jnp.dtype("float32"), **options})
    if isinstance(model, ResNet):
        _check_clashes(name, model)
        _check_blocks(name, model)
    return model


def _checked(key: str, value: Any, kind: type) -> Any:
    """Return a valid value of an option in the type of the field; raise ConfigError for an invalid one."""
    if key == "dtype":
        try:
            if value is not None and jnp.dtype(value).name in COMPUTE_DTYPES:
                return jnp.dtype(value)
        except TypeError:
            pass
        raise ConfigError(key="model.dtype", value=value, allowed=COMPUTE_DTYPES)
    if isinstance(value, list):
        value = tuple(value)
    if key in CHOICES:
        for choice in value if key == "block" and isinstance(value, tuple) else (value,):
            if choice not in CHOICES[key] or isinstance(choice, bool):
                problem = "" if choice is value else f"in {value!r}"
                names = map(str, CHOICES[key])
                raise ConfigError(problem, key=f"model.{key}", value=choice, allowed=names)
        return value
    numbers = value if isinstance(value, tuple) else (value,)
    if kind is bool:
        fits, words = isinstance(value, bool), "True or False"
    elif key in ("depths", "widths"):
        fits = bool(numbers) and isinstance(value, tuple)
        fits, words = fits and all(type(n) is int for n in numbers), "whole numbers, one per stage"
    elif kind is int:
        fits, words = type(value) is int, "a whole number"
    elif kind is float or (key == "standardize" and value is not None):
        fits, words = type(value) in (int, float), "a number"
    else:
        fits, words = True, ""
    if fits and kind in (int, float):
        fits, words = all(map(math.isfinite, numbers)), "finite"
    if fits and key in LEAST and value is not None:
        fits, words = min(numbers) >= LEAST[key], f"at least {LEAST[key]}"
    if fits and key in BELOW:
        fits, words = max(numbers) < BELOW[key], f"below {BELOW[key]:g}"
    if not fits:
        raise ConfigError(key=f"model.{key}", value=value, allowed=words)
    return value


def _check_clashes(name: str, model: ResNet) -> None:
    """Raise ConfigError if options conflict."""
    for clash in CLASHES:
        if clash.holds(model):
            key, *others = clash.options
            values = " and ".join(f"model.{one}={getattr(model, one)!r}" for one in others)
            raise ConfigError(
                f"{clash.reason} ({name})",
                key=f"model.{key}",
                value=getattr(model, key),
                allowed=values and f"compatible with {values}",
                cure=clash.cure,
            )


def _check_blocks(name: str, model: ResNet) -> None:
    """Raise ConfigError if channels are zero or not divisible, or if blocks to scan differ."""

    def refuse(key: str, reason: str) -> None:
        keys = ("widths", "stem_width", "base_width", "cardinality", "reduce_first")
        values = ", ".join(f"{one}={getattr(model, one)}" for one in keys if one != key)
        raise ConfigError(
            f"{reason} ({name} with {values})", key=f"model.{key}", value=getattr(model, key)
        )

    channels = model.stem_channels
    if min(int(channels * share) for _, _, share in STEMS[model.stem].layers) < 1:
        key = "stem_width" if model.stem_width else "widths"
        refuse(key, f"the {model.stem} stem would have a convolution without channels")
    for number, specs in enumerate(block_specs(model), 1):
        for spec in specs:
            if min(spec.channels) < 1:
                refuse("widths", f"a convolution of stage {number} would have no channels")
            if len(spec.channels) == 3 and any(c % model.cardinality for c in spec.channels[:2]):
                refuse("cardinality", f"the groups do not divide {spec.channels[:2]} channels")
            if model.shortcut == "pad" and spec.channels[-1] < channels:
                refuse("shortcut", f"can only add channels, and stage {number} has fewer")
            channels = spec.channels[-1]
        if model.scan_blocks and len({spec._replace(drop_path=0.0) for spec in specs[1:]}) > 1:
            refuse("scan_blocks", f"the blocks of stage {number} differ")
