"""The values that flow through a traced program: constants, and tensors of the graph with their layout.

JAX's arrays are NHWC and ONNX's tensors are NCHW. No transpose is written for that: each tensor knows which of
JAX's axes each of its own axes holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.onnx_graph.graph import Dim, Graph, Shape

# The layouts that operators of ONNX want, by rank: channels (or groups of channels) directly after the batch.
PREFERRED = {3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 3, 4, 1, 2)}


def unsupported(what: str) -> ConfigError:
    """Return the error for a part of a network that the writer cannot express."""
    return ConfigError(
        f"ONNX export does not support {what}",
        key="--format",
        value="onnx",
        cure="export to stablehlo",
    )


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array known at export.

    Attributes:
      value: the array. An axis of length 1 may stand for a longer axis of `shape`; a scalar for any shape.
      shape: the shape in JAX.
    """

    value: np.ndarray
    shape: Shape

    def full(self) -> np.ndarray:
        """Return the array with its full shape."""
        if not all(isinstance(side, int) for side in self.shape):
            raise unsupported("a constant of the size of the batch")
        return np.broadcast_to(self.value, self.shape)

    def in_layout(self, layout: tuple[int, ...]) -> np.ndarray:
        """Return the array with its axes in the order of a tensor's layout."""
        return self.value.transpose(layout) if self.value.ndim else self.value


@dataclasses.dataclass(frozen=True)
class Traced:
    """A tensor of the graph.

    Attributes:
      name: the tensor.
      shape: the shape in JAX.
      stored: the lengths that the tensor has, in JAX's order of axes: 1 where JAX has broadcast a longer axis.
      layout: axis i of the tensor is axis layout[i] in JAX.
    """

    name: str
    shape: Shape
    stored: Shape
    layout: tuple[int, ...]

    @property
    def tensor_shape(self) -> Shape:
        """The shape of the tensor in ONNX."""
        return tuple(self.stored[axis] for axis in self.layout)

    def axes(self, of_jax: Any) -> list[int]:
        """Return the axes of the tensor that hold these axes of JAX."""
        return [self.layout.index(axis) for axis in of_jax]


Value = Constant | Traced


class Call(NamedTuple):
    """A call of a primitive, of which at least one operand is a tensor.

    Attributes:
      operands: its operands.
      parameters: its parameters in JAX.
      result: shape and dtype of its result.
    """

    operands: list[Value]
    parameters: dict[str, Any]
    result: Any


Writer = Callable[[Graph, Call], Traced]


def identity(rank: int) -> tuple[int, ...]:
    """Return the layout of JAX itself."""
    return tuple(range(rank))


def long_axes(layout: tuple[int, ...], lengths: Shape) -> tuple[int, ...]:
    """Return a layout without the axes of length 1, which may be anywhere."""
    return tuple(axis for axis in layout if not is_one(lengths[axis]))


def is_one(length: Dim) -> bool:
    """Return whether an axis has length 1, not a symbolic one."""
    return isinstance(length, int) and length == 1


def wanted_layout(order: tuple[int, ...], lengths: Shape) -> tuple[int, ...]:
    """Return the best layout of a tensor whose longer axes are in this order."""
    rank = len(lengths)
    for layout in (PREFERRED.get(rank, identity(rank)), identity(rank)):
        if long_axes(layout, lengths) == order:
            return layout
    return (*order, *(axis for axis in range(rank) if axis not in order))


def maps_layout(rank: int) -> tuple[int, ...]:
    """Return the layout of maps: batch, channels (the last axis in JAX), then the other axes."""
    return (0, rank - 1, *range(1, rank - 1))


def as_traced(value: Value) -> Traced:
    """Return an operand that cannot be a constant, because it is the only one."""
    assert isinstance(value, Traced)
    return value


def as_tensor(graph: Graph, value: Value, layout: tuple[int, ...] | None = None) -> Traced:
    """Return a value as a tensor that stores its full shape, in a layout if one is given."""
    if isinstance(value, Constant):
        layout = layout or identity(len(value.shape))
        name = graph.constant(value.full().transpose(layout), "constant")
        graph.shapes[name] = graph.constants[name].shape
        graph.dtypes[name] = graph.constants[name].dtype
        return Traced(name, value.shape, value.shape, layout)
    value = materialized(graph, value)
    return in_layout(graph, value, layout) if layout else value


def in_layout(graph: Graph, x: Traced, layout: tuple[int, ...]) -> Traced:
    """Return a tensor in another layout. A node is added only if the order of the longer axes differs."""
    moved = dataclasses.replace(x, layout=layout)
    if long_axes(x.layout, x.stored) == long_axes(layout, x.stored):
        return dataclasses.replace(moved, name=_reshaped(graph, x.name, moved.tensor_shape))
    permutation = x.axes(layout)
    dtype = graph.dtypes[x.name]
    name = graph.add("Transpose", [x.name], moved.tensor_shape, dtype, perm=permutation)
    return dataclasses.replace(moved, name=name)


def materialized(graph: Graph, x: Traced) -> Traced:
    """Return a tensor that stores its full shape."""
    if x.stored == x.shape:
        return x
    shape = tuple(x.shape[axis] for axis in x.layout)
    # In Expand, a length of 1 keeps the length of the tensor.
    lengths = [1 if a == b else b for a, b in zip(x.tensor_shape, shape, strict=True)]
    if not all(isinstance(length, int) for length in lengths):
        raise unsupported("a tensor that is repeated over the batch")
    target = graph.integers(lengths, "shape")
    name = graph.add("Expand", [x.name, target], shape, graph.dtypes[x.name])
    return dataclasses.replace(x, name=name, stored=x.shape)


def reshape(graph: Graph, x: Traced, shape: Shape) -> Traced:
    """Return a tensor reshaped as in JAX; it is transposed only if merged axes are not neighbours in its layout."""
    blocks = _blocks(x.stored, shape)
    order = long_axes(x.layout, x.stored)
    starts = {inside[0]: inside for inside, _ in blocks}
    sequence: list[int] = []
    position = 0
    while position < len(order):
        inside = starts.get(order[position])
        if inside is None or order[position : position + len(inside)] != inside:
            return reshape(graph, in_layout(graph, x, identity(len(x.stored))), shape)
        sequence += next(outside for block, outside in blocks if block == inside)
        position += len(inside)
    layout = wanted_layout(tuple(sequence), shape)
    moved = Traced(x.name, shape, shape, layout)
    return dataclasses.replace(moved, name=_reshaped(graph, x.name, moved.tensor_shape))


def _reshaped(graph: Graph, name: str, shape: Shape) -> str:
    if graph.shapes[name] == shape:
        return name
    free = [side for side in shape if not isinstance(side, int)]
    if len(free) > 1:
        raise unsupported("a reshape of several symbolic dimensions")
    target = graph.integers([side if isinstance(side, int) else -1 for side in shape], "shape")
    return graph.add("Reshape", [name, target], shape, graph.dtypes[name])


def _blocks(before: Shape, after: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the smallest groups of axes that a reshape maps to each other, without axes of length 1."""
    inside = [axis for axis, side in enumerate(before) if not is_one(side)]
    outside = [axis for axis, side in enumerate(after) if not is_one(side)]
    blocks = []
    while inside and outside:
        left, right = [inside.pop(0)], [outside.pop(0)]
        have, want = before[left[0]], after[right[0]]
        while have != want:
            if not (isinstance(have, int) and isinstance(want, int)):
                raise unsupported("a reshape that merges the batch with other axes")
            if have < want:
                left.append(inside.pop(0))
                have *= before[left[-1]]
            else:
                right.append(outside.pop(0))
                want *= after[right[-1]]
        blocks.append((tuple(left), tuple(right)))
    return blocks
