"""Rules for padding, slices and reshapes."""

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import Node
from flax_resnet.inference.export.onnx_graph.rewriter import Rewriter, Rule


def _reflected_edge(rewriter: Rewriter, node: Node) -> bool:
    """Write an array beside one of its own edges, mirrored, as reflected padding."""
    axis = node.attributes["axis"]
    if len(node.inputs) != 2 or any(name in rewriter.graph.constants for name in node.inputs):
        return False
    rank, sides = len(rewriter.graph.shapes[node.output]), rewriter.graph.shapes
    for place, name in enumerate(node.inputs):
        array = node.inputs[1 - place]
        rows = _mirrored(rewriter, name, array, axis)
        if not rows:
            continue
        side = sides[array][axis]
        first = len(rows) if place == 0 else side - 2
        if list(rows) != list(range(first, first - len(rows), -1)):
            continue
        pads = [0] * (2 * rank)
        pads[axis + rank * place] = len(rows)
        node.op, node.attributes = "Pad", {"mode": "reflect"}
        node.inputs = [array, rewriter.graph.integers(pads, "pads")]
        rewriter.release(name)
        return True
    return False


def _mirrored(rewriter: Rewriter, name: str, of: str, axis: int) -> range | None:
    """Return the rows of a tensor that slices of it select along an axis, or None if it is no such slice."""
    steps: list[list[list[int]]] = []
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


def _of_pad(rewriter: Rewriter, node: Node) -> bool:
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


def _pad_of_conv(rewriter: Rewriter, node: Node) -> bool:
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


def _of_reshape(rewriter: Rewriter, node: Node) -> bool:
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


def _keep_axes(rewriter: Rewriter, node: Node) -> bool:
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


def _remain_map(rewriter: Rewriter, node: Node) -> bool:
    """Compute squeeze-and-excitation on maps of 1x1 pixels, by convolutions, without a reshape."""
    graph = rewriter.graph
    shape = graph.shapes[node.output]
    if len(shape) != 4 or shape[2:] != (1, 1) or len(graph.shapes[node.inputs[0]]) != 2:
        return False
    chain = []
    before = rewriter.before(node, "Gemm", "Relu", "Sigmoid", "Tanh", "ReduceMean")
    while before and before.op != "ReduceMean":
        chain.append(before)
        before = rewriter.before(before, "Gemm", "Relu", "Sigmoid", "Tanh", "ReduceMean")
    if not before or graph.constants[before.inputs[1]].tolist() != [2, 3]:
        return False
    before.attributes["keepdims"] = 1
    for link in (before, *chain):
        graph.shapes[link.output] = (*graph.shapes[link.output], 1, 1)
    for link in chain:
        if link.op == "Gemm":
            kernel = graph.constants[link.inputs[1]].T[..., None, None]
            graph.scope = link.scope
            link.inputs[1] = graph.constant(np.ascontiguousarray(kernel), "kernel")
            link.op, link.attributes = "Conv", {"kernel_shape": [1, 1]}
    return rewriter.skip(node)


def _of_slice(rewriter: Rewriter, node: Node) -> bool:
    """Slice several axes at once."""
    before, constants = rewriter.before(node, "Slice"), rewriter.graph.constants
    if not before or not all(name in constants for name in (*before.inputs[1:], *node.inputs[1:])):
        return False
    if set(constants[before.inputs[3]]) & set(constants[node.inputs[3]]):
        return False
    pairs = zip(
        before.inputs[1:], node.inputs[1:], ("starts", "ends", "axes", "steps"), strict=True
    )
    node.inputs[1:] = [
        rewriter.graph.integers([*constants[a], *constants[b]], name) for a, b, name in pairs
    ]
    return rewriter.absorb(node, before)


RULES: dict[str, tuple[Rule, ...]] = {
    "Concat": (_reflected_edge,),
    "Pad": (_of_pad,),
    "Conv": (_pad_of_conv,),
    "Reshape": (_of_reshape, _keep_axes, _remain_map),
    "Slice": (_of_slice,),
}
