"""Write sums and maxima over axes, and over windows."""

from typing import Any

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.operators.elementwise import affine, number
from flax_resnet.inference.export.onnx_graph.values import (
    Call,
    Traced,
    Writer,
    as_tensor,
    maps_layout,
    unsupported,
)


def _reduction(op: str) -> Writer:
    def write(graph: Graph, call: Call) -> Traced:
        axes, x = call.parameters["axes"], as_tensor(graph, call.operands[0])
        kept = [axis for axis in range(len(x.shape)) if axis not in axes]
        layout = tuple(kept.index(axis) for axis in x.layout if axis in kept)
        inputs = [x.name, graph.integers(sorted(x.axes(axes)), "axes")]
        shape = tuple(call.result.shape[axis] for axis in layout)
        name = graph.add(op, inputs, shape, call.result.dtype, keepdims=0)
        return Traced(name, call.result.shape, call.result.shape, layout)

    return write


def _window(op: str) -> Writer:
    def write(graph: Graph, call: Call) -> Traced:
        layout = maps_layout(len(call.result.shape))
        x = as_tensor(graph, call.operands[0], layout)
        window, strides, padding, dilations = (
            [call.parameters[key][axis] for axis in layout]
            for key in ("window_dimensions", "window_strides", "padding", "window_dilation")
        )
        outer = [*window[:2], *strides[:2], *(side for sides in padding[:2] for side in sides)]
        if outer != [1] * 4 + [0] * 4 or set(call.parameters["base_dilation"]) != {1}:
            raise unsupported("windows over images or channels, or dilated arrays")
        attributes: dict[str, Any] = {
            "kernel_shape": window[2:],
            "strides": strides[2:],
            "pads": [low for low, _ in padding[2:]] + [high for _, high in padding[2:]],
        }
        if set(dilations) != {1} and op == "AveragePool":
            raise unsupported("sums over dilated windows")
        if set(dilations) != {1}:
            attributes["dilations"] = dilations[2:]
        if op == "AveragePool":
            attributes["count_include_pad"] = 1
        shape = tuple(call.result.shape[axis] for axis in layout)
        name = graph.add(op, [x.name], shape, call.result.dtype, **attributes)
        pooled = Traced(name, call.result.shape, call.result.shape, layout)
        if op != "AveragePool":
            return pooled
        # A sum over a window is the mean, padding included, times the size of the window.
        return affine(graph, pooled, number(np.prod(window)), number(0), call.result)

    return write


WRITERS: dict[str, Writer] = {
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_window_sum": _window("AveragePool"),
    "reduce_window_max": _window("MaxPool"),
}
