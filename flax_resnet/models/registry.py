"""From a name to a network."""

import dataclasses
import fnmatch
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.models.resnet import STEMS, ResNet
from flax_resnet.models.variants import VARIANTS

CHOICES = {"stem": tuple(STEMS)}
COMPUTE_DTYPES = ("bfloat16", "float16", "float32", "float64")


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern, sorted.

    >>> list_models("*18")
    ['resnet18']
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def create_model(name: str, **options: Any) -> nn.Module:
    """Builds the network of that name.

    Args:
      name: one of `list_models()`.
      **options: fields of `ResNet` to set or override, such as ``num_classes=10``,
        ``stem="cifar"``, ``dtype="bfloat16"``, ``width=16``.

    Returns:
      A linen module; ``model.init(key, jnp.zeros((1, 224, 224, 3)), train=False)`` makes its
      variables (`params`, `batch_stats`).

    Raises:
      ConfigError: unknown name or option, or a value that is not allowed; one line.
    """
    if name not in VARIANTS:
        raise ConfigError(f"model {name!r} is unknown: {suggestion(name, VARIANTS)}")
    fields = {f.name for f in dataclasses.fields(ResNet)} - {"parent", "name"}
    for key, value in options.items():
        if key not in fields:
            raise ConfigError(f"model option {key!r} is unknown: {suggestion(key, fields)}")
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"model option {key}={value!r}: {suggestion(value, CHOICES[key])}")
    row = {**VARIANTS[name], "dtype": "float32", **options}
    try:
        row["dtype"] = jnp.dtype(row["dtype"])
        allowed = row["dtype"].name in COMPUTE_DTYPES
    except TypeError:
        allowed = False
    if not allowed:
        raise ConfigError(
            f"model option dtype={row['dtype']!s}: allowed: {', '.join(COMPUTE_DTYPES)}"
        )
    if row.get("num_classes", 1) < 1:
        raise ConfigError(f"model option num_classes={row['num_classes']}: must be at least 1")
    return ResNet(**row)
