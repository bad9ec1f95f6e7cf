"""Simplify a graph: fold factors and sums into the operators before them, and write pooling as pooling."""

import collections
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import AFFINE, Graph, Node

PRODUCTS = {"Conv": 0, "MatMul": 1, "Gemm": 1}  # the axis of the output channels in the second input


def simplify(graph: Graph, output: str) -> str:
    """Simplify a graph in place, and return the name of its output, which may have changed.

    Each node, in the order of execution, absorbs the nodes before it that nothing else uses.
    """
    rewriter = _Rewriter(graph, output)
    for node in list(graph.nodes):
        rewriter.visit(node)
    output = rewriter.name(output)
    _remove_unused(graph, output)
    graph.nodes = [written for node in graph.nodes for written in _written(graph, node)]
    _remove_unused(graph, output)
    return output


class _Rewriter:
    """The nodes before the one that is visited: who made a tensor, how often it is used, and its new name."""

    def __init__(self, graph: Graph, output: str) -> None:
        self.graph = graph
        self._producers: dict[str, Node] = {}
        self._uses = collections.Counter(name for node in graph.nodes for name in node.inputs)
        self._uses[output] += 1
        self._renamed: dict[str, str] = {}

    def name(self, tensor: str) -> str:
        """Return the name of a tensor whose node may have been removed."""
        while tensor in self._renamed:
            tensor = self._renamed[tensor]
        return tensor

    def visit(self, node: Node) -> None:
        """Apply the rules to a node until none applies."""
        node.inputs = [self.name(tensor) for tensor in node.inputs]
        while any(rule(self, node) for rule in RULES.get(node.op, ())):
            if node.output in self._renamed:
                return
        self._producers[node.output] = node

    def before(self, node: Node, *ops: str) -> Node | None:
        """Return the node that makes the first input, if it is one of these and nothing else uses it."""
        producer = self._producers.get(node.inputs[0])
        alone = self._uses[node.inputs[0]] == 1
        return producer if producer and alone and producer.op in ops else None

    def producer(self, tensor: str) -> Node | None:
        """Return the node that makes a tensor, or None for an input and for a constant."""
        return self._producers.get(tensor)

    def skip(self, node: Node) -> bool:
        """Let the users of a node take its first input instead."""
        self._uses[node.inputs[0]] += self._uses[node.output] - 1
        self._renamed[node.output] = node.inputs[0]
        return True

    def absorb(self, node: Node, before: Node) -> bool:
        """Let a node take the first input of the node before it."""
        node.inputs[0] = before.inputs[0]
        return True

    def become(self, node: Node, before: Node, **attributes: object) -> bool:
        """Let a node do what the node before it did, with other attributes."""
        node.op, node.inputs, node.scope = before.op, list(before.inputs), before.scope
        node.attributes = before.attributes | attributes
        return True


def _is_identity(rewriter: _Rewriter, node: Node) -> bool:
    scale, shift = node.attributes["scale"], node.attributes["shift"]
    same_shape = rewriter.graph.shapes[node.inputs[0]] == rewriter.graph.shapes[node.output]
    # 1 / 49 * 49 may differ from 1 by a rounding.
    if not same_shape or np.any(shift) or not np.allclose(scale, 1, rtol=0, atol=1e-12):
        return False
    return rewriter.skip(node)


def _of_affine(rewriter: _Rewriter, node: Node) -> bool:
    """``(x a + b) c + d = x (a c) + (b c + d)``."""
    if not (before := rewriter.before(node, AFFINE)):
        return False
    a, b = before.attributes["scale"], before.attributes["shift"]
    c, d = node.attributes["scale"], node.attributes["shift"]
    node.attributes = {"scale": a * c, "shift": b * c + d}
    return rewriter.absorb(node, before)


def _of_sum(rewriter: _Rewriter, node: Node) -> bool:
    """Write a sum divided by the number of its terms as a mean."""
    before = rewriter.before(node, "ReduceSum")
    if not before or node.attributes["scale"].size != 1:
        return False
    sides = rewriter.graph.shapes[before.inputs[0]]
    summed = [sides[axis] for axis in rewriter.graph.constants[before.inputs[1]]]
    if not all(isinstance(side, int) for side in summed):
        return False
    before.op = "ReduceMean"
    node.attributes["scale"] = node.attributes["scale"] * math.prod(summed)
    return True


def _of_average_pool(rewriter: _Rewriter, node: Node) -> bool:
    """Leave the padding out of a mean if the sum is divided by the number of covered pixels."""
    before = rewriter.before(node, "AveragePool")
    scale = node.attributes["scale"]
    if not before or not before.attributes["count_include_pad"] or scale.size == 1:
        return False
    shares = _covered(rewriter.graph, before) / math.prod(before.attributes["kernel_shape"])
    if scale.shape != shares.shape or not np.allclose(scale * shares, (scale * shares).flat[0]):
        return False
    before.attributes["count_include_pad"] = 0
    node.attributes["scale"] = np.asarray((scale * shares).flat[0])
    return True


def _covered(graph: Graph, pool: Node) -> np.ndarray:
    """Return the number of pixels that each window covers, without padding: [1, 1, H, W]."""
    rank = len(pool.attributes["kernel_shape"])
    counts = np.ones((1, 1), np.float64)
    sizes = graph.shapes[pool.inputs[0]][2:]
    outputs = graph.shapes[pool.output][2:]
    for axis in range(rank):
        window, stride = (pool.attributes[key][axis] for key in ("kernel_shape", "strides"))
        starts = np.arange(outputs[axis]) * stride - pool.attributes["pads"][axis]
        covered = np.minimum(starts + window, sizes[axis]) - np.maximum(starts, 0)
        counts = counts[..., None] * covered
    return counts


def _of_product(rewriter: _Rewriter, node: Node) -> bool:
    """Fold factors and sums per channel into a convolution or a linear layer."""
    before = rewriter.before(node, *PRODUCTS)
    constants = rewriter.graph.constants
    if not before or before.inputs[1] not in constants:
        return False
    weights, axis = constants[before.inputs[1]], PRODUCTS[before.op]
    channels, rank = weights.shape[axis], len(rewriter.graph.shapes[node.output])
    if rank != (2 if axis else weights.ndim):
        return False
    factors = [_per_channel(node.attributes[key], channels, rank) for key in ("scale", "shift")]
    scale, shift = factors
    if scale is None or shift is None:
        return False
    bias = constants[before.inputs[2]] if len(before.inputs) > 2 else np.zeros(channels)
    sides = [1] * weights.ndim
    sides[axis] = channels
    kernel = (weights * scale.reshape(sides)).astype(weights.dtype)
    rewriter.become(node, before)
    node.op = "Gemm" if axis else "Conv"
    scope, rewriter.graph.scope = rewriter.graph.scope, node.scope
    node.inputs[1:] = [
        rewriter.graph.constant(kernel, "kernel"),
        rewriter.graph.constant((bias * scale + shift).astype(weights.dtype), "bias"),
    ]
    rewriter.graph.scope = scope
    return True


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """Return an array as one number per channel (axis 1), or None if it has other axes."""
    if array.size == 1:
        return np.full(channels, array.reshape(()))
    sides = (1, channels, *(1,) * (rank - 2))
    return array.reshape(channels) if array.shape == sides else None


def _reflected_edges(rewriter: _Rewriter, node: Node) -> bool:
    """Write an array between its own mirrored edges as reflected padding."""
    axis = node.attributes["axis"]
    if len(node.inputs) != 3 or (middle := node.inputs[1]) in rewriter.graph.constants:
        return False
    side = rewriter.graph.shapes[middle][axis]
    pads = []
    for place in (0, 2):
        rows = _mirrored(rewriter, node.inputs[place], middle, axis)
        if rows is None:
            return False
        count = len(rows)
        wanted = range(count, 0, -1) if place == 0 else range(side - 2, side - 2 - count, -1)
        if list(rows) != list(wanted):
            return False
        pads.append(count)
    rank = len(rewriter.graph.shapes[middle])
    sides = [0] * (2 * rank)
    sides[axis], sides[rank + axis] = pads
    node.op, node.attributes = "Pad", {"mode": "reflect"}
    node.inputs = [middle, rewriter.graph.integers(sides, "pads")]
    return True


def _mirrored(rewriter: _Rewriter, name: str, of: str, axis: int) -> range | None:
    """Return the rows of a tensor that slices of it select along an axis, or None if it is no such slice."""
    steps = []
    while name != of:
        node = rewriter.producer(name)
        if not node or node.op != "Slice":
            return None
        steps.append([rewriter.graph.constants[bound].tolist() for bound in node.inputs[1:]])
        name = node.inputs[0]
    rows = range(rewriter.graph.shapes[of][axis])
    for starts, ends, axes, strides in reversed(steps):
        if axes != [axis]:
            return None
        stop = None if strides[0] < 0 else ends[0]
        rows = rows[starts[0] : stop : strides[0]]
    return rows


def _of_pad(rewriter: _Rewriter, node: Node) -> bool:
    """Merge two paddings of the same kind."""
    before, constants = rewriter.before(node, "Pad"), rewriter.graph.constants
    if not before or before.attributes != node.attributes:
        return False
    if [constants[c] for c in before.inputs[2:]] != [constants[c] for c in node.inputs[2:]]:
        return False
    first, second = constants[before.inputs[1]], constants[node.inputs[1]]
    # Reflected padding of an axis that is padded already would mirror the padding.
    if node.attributes["mode"] == "reflect" and np.any(first * second):
        return False
    node.inputs[1] = rewriter.graph.integers(first + second, "pads")
    return rewriter.absorb(node, before)


def _pad_of_conv(rewriter: _Rewriter, node: Node) -> bool:
    """Let a convolution pad with zeros by itself."""
    before, constants = rewriter.before(node, "Pad"), rewriter.graph.constants
    if not before or before.attributes["mode"] != "constant" or np.any(constants[before.inputs[2]]):
        return False
    low, high = np.split(constants[before.inputs[1]], 2)
    if np.any(low[:2]) or np.any(high[:2]):
        return False
    pads = np.asarray(node.attributes["pads"]) + np.concatenate([low[2:], high[2:]])
    node.attributes["pads"] = pads.tolist()
    return rewriter.absorb(node, before)


def _of_reshape(rewriter: _Rewriter, node: Node) -> bool:
    """Reshape once instead of twice."""
    if not (before := rewriter.before(node, "Reshape")):
        return False
    shapes = rewriter.graph.shapes
    target = rewriter.graph.constants[node.inputs[1]]
    if 0 in target:  # copies a length of the shape between the two
        return False
    rewriter.absorb(node, before)
    if shapes[node.inputs[0]] == shapes[node.output]:
        rewriter.skip(node)
    return True


def _keep_axes(rewriter: _Rewriter, node: Node) -> bool:
    """Let a reduction keep its axes instead of restoring them."""
    before = rewriter.before(node, "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
    shapes = rewriter.graph.shapes
    if not before or before.attributes["keepdims"]:
        return False
    sides = list(shapes[before.inputs[0]])
    for axis in rewriter.graph.constants[before.inputs[1]]:
        sides[axis] = 1
    if tuple(sides) != shapes[node.output]:
        return False
    return rewriter.become(node, before, keepdims=1)


Rule = Callable[[_Rewriter, Node], bool]
RULES: dict[str, tuple[Rule, ...]] = {
    AFFINE: (_is_identity, _of_affine, _of_sum, _of_average_pool, _of_product),
    "Concat": (_reflected_edges,),
    "Pad": (_of_pad,),
    "Conv": (_pad_of_conv,),
    "Reshape": (_of_reshape, _keep_axes),
}


def _written(graph: Graph, node: Node) -> list[Node]:
    """Return the operators of ONNX for AFFINE, and any other node as it is."""
    if node.op != AFFINE:
        return [node]
    graph.scope = node.scope
    dtype = graph.dtypes[node.output]
    scale, shift = node.attributes["scale"], node.attributes["shift"]
    shape = graph.shapes[node.output]
    scales = not np.all(scale == 1)
    shifts = bool(np.any(shift))
    if scales and shifts and len(shape) == 4 and isinstance(shape[1], int):
        factors = [_per_channel(array, shape[1], 4) for array in (scale, shift)]
        if factors[0] is not None and factors[1] is not None:
            zeros, ones = np.zeros(shape[1]), np.ones(shape[1])
            vectors = zip((*factors, zeros, ones), ("scale", "bias", "mean", "var"), strict=True)
            inputs = [graph.constant(v.astype(dtype), name) for v, name in vectors]
            inputs.insert(0, node.inputs[0])
            attributes = {"epsilon": 0.0}
            return [Node("BatchNormalization", inputs, node.output, attributes, node.scope)]
    nodes, x = [], node.inputs[0]
    for op, array, needed in (("Mul", scale, scales or not shifts), ("Add", shift, shifts)):
        if needed:
            constant = graph.constant(array.astype(dtype), "constant")
            name = graph.named(op.lower())
            graph.shapes[name], graph.dtypes[name] = shape, dtype
            nodes.append(Node(op, [x, constant], name, {}, node.scope))
            x = name
    nodes[-1] = dataclasses.replace(nodes[-1], output=node.output)
    return nodes


def _remove_unused(graph: Graph, output: str) -> None:
    """Remove the nodes and constants that the output does not depend on."""
    needed, nodes = {output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            nodes.append(node)
    graph.nodes = nodes[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}
