"""Write convolutions, matrix products, and layers that ONNX has an operator for."""

import dataclasses

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.values import (
    Call,
    Constant,
    Traced,
    Writer,
    as_tensor,
    identity,
    maps_layout,
    unsupported,
)


def _conv(graph: Graph, call: Call) -> Traced:
    numbers, padding = call.parameters["dimension_numbers"], call.parameters["padding"]
    kernel = call.operands[1]
    if not isinstance(kernel, Constant):
        raise unsupported("a convolution with a computed kernel")
    if set(call.parameters["lhs_dilation"]) != {1} or call.parameters["batch_group_count"] != 1:
        raise unsupported("a transposed convolution")
    if any(side < 0 for sides in padding for side in sides):
        raise unsupported("a convolution with negative padding")
    x, layout = as_tensor(graph, call.operands[0], numbers.lhs_spec), numbers.out_spec
    array = np.ascontiguousarray(kernel.full().transpose(numbers.rhs_spec))
    name = graph.add(
        "Conv",
        [x.name, graph.constant(array, "kernel")],
        tuple(call.result.shape[axis] for axis in layout),
        call.result.dtype,
        kernel_shape=list(array.shape[2:]),
        strides=list(call.parameters["window_strides"]),
        pads=[low for low, _ in padding] + [high for _, high in padding],
        dilations=list(call.parameters["rhs_dilation"]),
        group=call.parameters["feature_group_count"],
    )
    return Traced(name, call.result.shape, call.result.shape, layout)


def _dot(graph: Graph, call: Call) -> Traced:
    (inner, batch), (left, right) = call.parameters["dimension_numbers"], call.operands
    vectors = len(left.shape) == len(right.shape) == 2 and not batch[0]
    if not vectors or not isinstance(right, Constant):
        return _einsum(graph, call)
    x = as_tensor(graph, left, (1 - inner[0][0], inner[0][0]))
    array = right.full().transpose(inner[1][0], 1 - inner[1][0])
    weights = graph.constant(np.ascontiguousarray(array), "kernel")
    name = graph.add("MatMul", [x.name, weights], tuple(call.result.shape), call.result.dtype)
    return Traced(name, call.result.shape, call.result.shape, (0, 1))


def _einsum(graph: Graph, call: Call) -> Traced:
    """Write any product; the result has the shared, then the left, then the right axes."""
    inner, batch = call.parameters["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left: dict[int, str] = {}
    right: dict[int, str] = {}
    for pairs in (batch, inner):
        for a, b in zip(*pairs, strict=True):
            left[a] = right[b] = next(letters)
    output = "".join(left[axis] for axis in batch[0])
    tensors = [as_tensor(graph, x) for x in call.operands]
    for axes, x in zip((left, right), tensors, strict=True):
        for axis in range(len(x.shape)):
            if axis not in axes:
                axes[axis] = next(letters)
                output += axes[axis]
    terms = [
        "".join(axes[axis] for axis in x.layout)
        for axes, x in zip((left, right), tensors, strict=True)
    ]
    layout = maps_layout(4) if len(output) == 4 else identity(len(output))
    equation = f"{','.join(terms)}->{''.join(output[axis] for axis in layout)}"
    shape = tuple(call.result.shape[axis] for axis in layout)
    names = [x.name for x in tensors]
    name = graph.add("Einsum", names, shape, call.result.dtype, equation=equation)
    return Traced(name, call.result.shape, call.result.shape, layout)


def _group_norm(graph: Graph, call: Call) -> Traced:
    """Write the normalisation of each group as that of one channel: a reshape moves no data."""
    x, groups = as_tensor(graph, call.operands[0], maps_layout(4)), call.parameters["groups"]
    batch, channels, height, width = x.tensor_shape
    flat = (batch, groups, channels // groups * height * width)
    grouped = graph.add("Reshape", [x.name, graph.integers([0, groups, -1], "shape")], flat)
    ones, zeros = (graph.constant(np.full(groups, v, np.float32), "group") for v in (1, 0))
    epsilon = call.parameters["epsilon"]
    inputs = [grouped, ones, zeros]
    normed = graph.add("InstanceNormalization", inputs, flat, epsilon=epsilon)
    back = graph.integers([0, channels, height, width], "shape")
    return dataclasses.replace(x, name=graph.add("Reshape", [normed, back], x.tensor_shape))


WRITERS: dict[str, Writer] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "group_norm": _group_norm,
}
