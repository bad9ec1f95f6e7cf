"""The operations of RandAugment and TrivialAugment, which apply random operations to each image.

`vmap` of `lax.switch` would compute every operation for every image. Instead, each operation is a row of
parameters: a table of levels, a matrix for the warp, and amounts for blending. The parameters that an operation
does not use have neutral values. So one pass of each kernel applies a different operation to each image of a batch.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import color
from flax_resnet.augment.geometry import warp
from flax_resnet.augment.rng import below, row_keys, uniform

Array = jax.Array

BINS = 31
LEVELS = np.arange(256, dtype=np.float32)


TABLES = ("levels", "autocontrast", "equalize")


Ranges = dict[str, tuple[float, float]]  # {range: first and last magnitude}


class Operation(NamedTuple):
    """Parameters of an operation on one image, or with a leading axis N on a batch; the defaults change nothing.

    The fields are NumPy arrays and scalars on the host, and JAX arrays inside jit.
    """

    levels: Any = LEVELS.astype(np.uint8)  # uint8 [256], a table
    matrix: Any = np.eye(2, 3, dtype=np.float32)  # float32 [2, 3], see `warp`
    contrast: Any = np.float32(0)  # amounts, float32 scalars, see `blend`
    saturation: Any = np.float32(0)
    sharpness: Any = np.float32(0)
    table: Any = np.int32(0)  # int32 scalar, one of TABLES


def apply(images: Array, operations: Operation) -> Array:
    """Apply operation i, given by row i of the fields [N, ...], to image i of uint8 [N, H, W, 3]."""

    def amount(values: Array) -> Array:
        return values[:, None, None, None]

    counts = color.histogram(images)
    mean = color.mean_grey(images)[:, None]
    levels = color.blend(operations.levels, mean, operations.contrast[:, None])
    levels = jnp.broadcast_to(levels[:, None], counts.shape)
    tables = (levels, color.autocontrast_levels(counts), color.equalize_levels(counts))
    # Select the table by a product, which XLA computes once. XLA would fuse a `where` into the lookup and compute
    # the table again for every pixel, which takes 2 to 4 times as long as the whole function.
    chosen = jax.nn.one_hot(operations.table, len(TABLES))
    levels = jnp.einsum("nt,ntcl->ncl", chosen, jnp.stack(tables, axis=1).astype(jnp.float32))
    levels = levels.astype(jnp.uint8)
    images = color.sharpness(images, amount(operations.sharpness))
    images = color.saturation(images, amount(operations.saturation))
    return warp(color.look_up(images, levels), operations.matrix)


def _matrix(*entries: float | np.float32) -> dict[str, Any]:
    return {"matrix": np.array(entries, np.float32).reshape(2, 3)}


def _rotated(degrees: np.float32) -> dict[str, Any]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _matrix(cos, -sin, 0, sin, cos, 0)


def _table(name: str) -> dict[str, Any]:
    return {"table": np.int32(TABLES.index(name))}


def _levels(values: np.ndarray) -> dict[str, Any]:
    return {"levels": np.clip(values, 0, 255).astype(np.uint8)}


class Kind(NamedTuple):
    """A kind of operation: the name of its range, and a function (magnitude, height, width) -> {field: value}."""

    range: str
    fields: Callable[[np.float32, int, int], dict[str, Any]]


# Names and order are torchvision's. As in torchvision, shears keep the top left corner fixed.
KINDS = {
    "Identity": Kind("none", lambda m, h, w: {}),
    "ShearX": Kind("shear", lambda m, h, w: _matrix(1, m, m * h / 2, 0, 1, 0)),
    "ShearY": Kind("shear", lambda m, h, w: _matrix(1, 0, 0, m, 1, m * w / 2)),
    "TranslateX": Kind("across", lambda m, h, w: _matrix(1, 0, -int(m), 0, 1, 0)),
    "TranslateY": Kind("down", lambda m, h, w: _matrix(1, 0, 0, 0, 1, -int(m))),
    "Rotate": Kind("degrees", lambda m, h, w: _rotated(m)),
    "Brightness": Kind("amount", lambda m, h, w: _levels((1 + m) * LEVELS)),
    "Color": Kind("amount", lambda m, h, w: {"saturation": m}),
    "Contrast": Kind("amount", lambda m, h, w: {"contrast": m}),
    "Sharpness": Kind("amount", lambda m, h, w: {"sharpness": m}),
    "Posterize": Kind("bits", lambda m, h, w: _levels(LEVELS.astype(int) & -(2 ** int(8 - m)))),
    "Solarize": Kind("threshold", lambda m, h, w: _levels(np.where(m <= LEVELS, 255 - LEVELS, LEVELS))),
    "AutoContrast": Kind("none", lambda m, h, w: _table("autocontrast")),
    "Equalize": Kind("none", lambda m, h, w: _table("equalize")),
}  # fmt: skip

SIGNED = {"shear", "across", "down", "degrees", "amount"}


def magnitudes(name: str, first: float, last: float) -> np.ndarray:
    """Return the magnitudes of a range: float32 [BINS], evenly spaced; whole numbers for "bits"."""
    # Like torch.linspace: count from both ends by a float32 step, and round once. The last bit of a magnitude
    # decides whether a product that is a whole number is truncated to one less. That affects up to 20 % of an
    # image's values.
    step, half = np.float32(last - first) / np.float32(BINS - 1), BINS // 2
    up = first + step * np.arange(half, dtype=np.float64)
    down = np.float32(last) - step * np.arange(BINS - half, dtype=np.float64)[::-1]
    values = np.concatenate([up, down]).astype(np.float32)
    return np.round(values) if name == "bits" else values


def operations(ranges: Ranges, height: int, width: int) -> Operation:
    """Return every operation that a policy may draw: fields [kinds, BINS, 2, ...].

    The third axis is the sign, positive or negative. Operations without a sign have the same row twice.

    Args:
      ranges: first and last magnitude of each range of the policy.
      height: height of the images, in pixels.
      width: width of the images, in pixels.
    """

    def row(kind: Kind, number: int, sign: int) -> Operation:
        magnitude = magnitudes(kind.range, *ranges[kind.range])[number]
        signed = magnitude * np.float32(sign if kind.range in SIGNED else 1)
        return Operation(**kind.fields(signed, height, width))

    rows = [row(k, b, s) for k in KINDS.values() for b in range(BINS) for s in (1, -1)]
    stacked = Operation(*map(np.stack, zip(*rows, strict=True)))
    return Operation(*(x.reshape(len(KINDS), BINS, 2, *x.shape[1:]) for x in stacked))


def choices(key: Array, rows: int) -> tuple[Array, Array, Array]:
    """Draw a kind, a bin and a sign (0 or 1) for each row: three uniform int32 [N]."""
    kind, number, sign = uniform(row_keys(key, rows), 3)
    return below(kind, len(KINDS)), below(number, BINS), below(sign, 2)
