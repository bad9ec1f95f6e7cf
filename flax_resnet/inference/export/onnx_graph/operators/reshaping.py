"""Write operations that move, select, repeat or pad elements."""

import dataclasses
from typing import Any

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.values import (
    Call,
    Constant,
    Traced,
    Writer,
    as_tensor,
    as_traced,
    is_one,
    reshape,
    unsupported,
)


def _reshape(graph: Graph, call: Call) -> Traced:
    return reshape(graph, as_tensor(graph, call.operands[0]), call.result.shape)


def _broadcast(graph: Graph, call: Call) -> Traced:
    x = as_traced(call.operands[0])
    stored: list[Any] = [1] * len(call.result.shape)
    for axis, side in zip(call.parameters["broadcast_dimensions"], x.stored, strict=True):
        stored[axis] = side
    return dataclasses.replace(reshape(graph, x, tuple(stored)), shape=call.result.shape)


def _transpose(graph: Graph, call: Call) -> Traced:
    del graph
    x, permutation = as_traced(call.operands[0]), list(call.parameters["permutation"])
    layout = tuple(permutation.index(axis) for axis in x.layout)
    stored = tuple(x.stored[axis] for axis in permutation)
    return Traced(x.name, call.result.shape, stored, layout)


def _slice(graph: Graph, call: Call) -> Traced:
    x = as_tensor(graph, call.operands[0])
    starts, limits, strides = (
        call.parameters[key] for key in ("start_indices", "limit_indices", "strides")
    )
    bounds = {}
    for axis, bound in enumerate(zip(starts, limits, strides or [1] * len(starts), strict=True)):
        if bound[0] != 0 or bound[1] != x.shape[axis] or bound[2] != 1:
            bounds[axis] = bound
    return _sliced(graph, x, bounds, call.result)


def _reverse(graph: Graph, call: Call) -> Traced:
    x, lowest = as_traced(call.operands[0]), np.iinfo(np.int64).min
    reversed_axes = [axis for axis in call.parameters["dimensions"] if not is_one(x.stored[axis])]
    return _sliced(graph, x, {axis: (-1, lowest, -1) for axis in reversed_axes}, call.result)


def _sliced(graph: Graph, x: Traced, bounds: dict[int, tuple], result: Any) -> Traced:
    """Slice axes of JAX by {axis: (start, limit, stride)}."""
    if not bounds:
        return x
    vectors: list[Any] = [*zip(*bounds.values(), strict=True)]
    vectors.insert(2, x.axes(bounds))
    names = ("starts", "ends", "axes", "steps")
    inputs = [graph.integers(v, name) for v, name in zip(vectors, names, strict=True)]
    stored = tuple(
        result.shape[axis] if axis in bounds else side for axis, side in enumerate(x.stored)
    )
    shape = tuple(stored[axis] for axis in x.layout)
    name = graph.add("Slice", [x.name, *inputs], shape, graph.dtypes[x.name])
    return Traced(name, result.shape, stored, x.layout)


def _pad(graph: Graph, call: Call) -> Traced:
    x, fill = as_tensor(graph, call.operands[0]), call.operands[1]
    sides = [call.parameters["padding_config"][axis] for axis in x.layout]
    odd = any(min(low, high) < 0 or inner for low, high, inner in sides)
    if not isinstance(fill, Constant) or odd:
        raise unsupported("padding with a computed value, negative padding, or padding inside")
    pads = [low for low, _, _ in sides] + [high for _, high, _ in sides]
    value = graph.constant(fill.value.astype(call.result.dtype), "value")
    inputs = [x.name, graph.integers(pads, "pads"), value]
    shape = tuple(call.result.shape[axis] for axis in x.layout)
    name = graph.add("Pad", inputs, shape, call.result.dtype, mode="constant")
    return Traced(name, call.result.shape, call.result.shape, x.layout)


def _concatenate(graph: Graph, call: Call) -> Traced:
    layout = next(x.layout for x in call.operands if isinstance(x, Traced))
    names = [as_tensor(graph, x, layout).name for x in call.operands]
    shape = tuple(call.result.shape[axis] for axis in layout)
    axis = layout.index(call.parameters["dimension"])
    name = graph.add("Concat", names, shape, call.result.dtype, axis=axis)
    return Traced(name, call.result.shape, call.result.shape, layout)


WRITERS: dict[str, Writer] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "concatenate": _concatenate,
}
