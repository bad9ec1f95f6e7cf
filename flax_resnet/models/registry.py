"""Build a network from its name and options, with error messages that name the invalid option."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.models.airbench import AIRBENCH, Airbench
from flax_resnet.models.baselines import FIXED_FIELDS, NORM_FIELDS, NORMALIZED, PLAIN, ConvNet
from flax_resnet.models.blocks import BLOCKS
from flax_resnet.models.model_section import Model
from flax_resnet.models.resnet import ResNet
from flax_resnet.models.resnet_clashes import check_resnet
from flax_resnet.models.stems import STEM_POOLS
from flax_resnet.models.variants import VARIANTS
from flax_resnet.settings import (
    ANY,
    Registry,
    Row,
    Rule,
    at_least,
    in_words,
    not_used,
    one_of,
    out_of_range,
)

SETTINGS = {field.name: field for field in dataclasses.fields(Model)}
# The options that name a row, and their registries.
CHOICES: dict[str, Registry] = {
    **{k: f.metadata["registry"] for k, f in SETTINGS.items() if "registry" in f.metadata},
    "block": BLOCKS,
    "stem_pool": STEM_POOLS,
}
# The types and rules of the other options, some of which are not settings.
RULES: dict[str, tuple[type, Rule]] = {
    **{k: (get_type_hints(Model)[k], f.metadata["rule"]) for k, f in SETTINGS.items()},
    "in_channels": (int, at_least(1)),  # images have 1 or 3 channels, but networks take any number
    "stem_width": (int, at_least(0)),
    "cardinality": (int, at_least(1)),
    "base_width": (int, at_least(1)),
    "reduce_first": (int, at_least(1)),
    "stride_first": (bool, ANY),
    "shortcut_size": (int, one_of(1, 3)),
    "standardize": (float, at_least(0)),
    "dropout_at": (str, one_of("head", "blocks")),
}
COMPUTE_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Family(NamedTuple):
    """Networks that are the same module with different field values.

    Attributes:
      make: the module class.
      rows: network name -> field values.
      options: the options that a user may set.
      check: (name, module) -> None; raises ConfigError if options do not fit together.
    """

    make: type[nn.Module]
    rows: Mapping[str, Mapping[str, Any]]
    options: frozenset[str]
    check: Callable[[str, Any], None] = lambda name, model: None


def _options(make: type[nn.Module], *fixed: str) -> frozenset[str]:
    """Return the fields of a module, without the fixed ones, and `norm_scope`, which sets `norm_groups`."""
    fields = {f.name for f in dataclasses.fields(make)} - {"parent", "name", *fixed}
    return frozenset(fields | ({"norm_scope"} if "norm_groups" in fields else set()))


FAMILIES = (
    Family(ResNet, VARIANTS, _options(ResNet, "block_widths"), check_resnet),
    Family(ConvNet, PLAIN, _options(ConvNet, *FIXED_FIELDS, *NORM_FIELDS)),
    Family(ConvNet, NORMALIZED, _options(ConvNet, *FIXED_FIELDS)),
    Family(Airbench, AIRBENCH, _options(Airbench)),
)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted.

    >>> list_models("resnet18*")
    ['resnet18', 'resnet18_cifar', 'resnet18d']
    """
    return sorted(fnmatch.filter([name for family in FAMILIES for name in family.rows], pattern))


def takes(name: str, option: str) -> bool:
    """Return whether a network has an option; True for an unknown network, and for what no network has."""
    family = _family(name)
    is_option = any(option in other.options for other in FAMILIES)
    return family is None or option in family.options or not is_option


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
      name: one of `list_models()`.
      **options: fields of `ResNet` to set or override, such as ``num_classes=10``, ``stem="cifar"``,
        ``dtype="bfloat16"``, ``depths=(2, 2)``, ``widths=(32, 64)``. AlexNet and VGG accept num_classes,
        in_channels, dtype and dropout, with batch normalisation also norm_momentum and norm_epsilon; airbench94
        accepts the fields of `Airbench`. Networks with batch normalisation also accept norm_scope: "global",
        "local" for one group of statistics per device, or "ghost" for `norm_groups` groups.

    Returns:
      A linen module. ``model.init(key, jnp.zeros((1, 224, 224, 3)), train=False)`` returns its variables: `params`
      and, with batch normalisation, `batch_stats`.

    Raises:
      ConfigError: the name or an option is unknown, a value is invalid, the network does not use an option, or
        options conflict.
    """
    family = _family(name)
    if family is None:
        near = suggestion(str(name), list_models())
        raise ConfigError(
            key="model.name",
            value=name,
            allowed="a name of flax_resnet.list_models(), such as 'resnet50'",
            cure=near if near.startswith("did") else "",
        )
    for key, value in options.items():
        if key not in family.options:
            raise _no_option(name, family, key, value)
        options[key] = _checked(key, value)
    values = {**family.rows[name], "dtype": jnp.dtype("float32"), **options}
    if values.pop("norm_scope", "") == "local":
        values["norm_groups"] = jax.device_count()
    model = family.make(**values)
    _refuse_unused(model, options)
    # The section checks what its settings need of each other.
    Model(name=name, **{key: value for key, value in options.items() if key in SETTINGS})
    family.check(name, model)
    return model


def _family(name: str) -> Family | None:
    families = (family for family in FAMILIES if isinstance(name, str) and name in family.rows)
    return next(families, None)


def _no_option(name: str, family: Family, key: str, value: Any) -> ConfigError:
    """Return the error for an option that the network does not have."""
    if any(key in other.options for other in FAMILIES):
        uses = dict.fromkeys(sorted(family.options))
        return not_used(f"model.{key}", value, "model.name", Row(name=name, help="", uses=uses))
    return ConfigError(
        f"{name} has no such option",
        key=f"model.{key}",
        value=value,
        cure=suggestion(key, family.options),
    )


def _refuse_unused(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for an option that a chosen row does not use."""
    for setting, registry in CHOICES.items():
        chosen = getattr(model, setting, ())
        for name in chosen if isinstance(chosen, tuple) else (chosen,):
            uses = registry[name].uses if name in registry else registry.settings
            for key, value in options.items():
                if key in registry.settings and key not in uses:
                    raise not_used(f"model.{key}", value, f"model.{setting}", registry[name])


def _checked(key: str, value: Any) -> Any:
    """Return a valid value of an option in the type of the field; raise ConfigError for an invalid one."""
    if key == "dtype":
        return _checked_dtype(value)
    if isinstance(value, list):
        value = tuple(value)
    if key in CHOICES:
        for choice in value if key == "block" and isinstance(value, tuple) else (value,):
            if not isinstance(choice, str) or choice not in CHOICES[key]:
                problem = "" if choice is value else f"in {value!r}"
                raise ConfigError(
                    problem, key=f"model.{key}", value=choice, allowed=tuple(CHOICES[key])
                )
        return value
    if key == "standardize" and value is None:
        return value
    kind, rule = RULES[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    limit = out_of_range(value) if fits else ""
    if limit or not fits or not rule.holds(value):
        allowed = limit or in_words(kind, rule)
        raise ConfigError(key=f"model.{key}", value=value, allowed=allowed)
    return value


def _checked_dtype(value: Any) -> Any:
    try:
        if value is not None and jnp.dtype(value).name in COMPUTE_DTYPES:
            return jnp.dtype(value)
    except TypeError:
        pass
    raise ConfigError(key="model.dtype", value=value, allowed=COMPUTE_DTYPES)
