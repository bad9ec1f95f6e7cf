"""Rules for factors and sums: fold them into the operator before them, or write them as operators of ONNX."""

import math

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import AFFINE, Graph, Node
from flax_resnet.inference.export.onnx_graph.rewriter import Rewriter, Rule

PRODUCTS = {
    "Conv": 0,
    "MatMul": 1,
    "Gemm": 1,
}  # the axis of the output channels in the second input


def _is_identity(rewriter: Rewriter, node: Node) -> bool:
    scale, shift = node.attributes["scale"], node.attributes["shift"]
    same_shape = rewriter.graph.shapes[node.inputs[0]] == rewriter.graph.shapes[node.output]
    # 1 / 49 * 49 may differ from 1 by a rounding.
    if not same_shape or np.any(shift) or not np.allclose(scale, 1, rtol=0, atol=1e-12):
        return False
    return rewriter.skip(node)


def _of_affine(rewriter: Rewriter, node: Node) -> bool:
    """``(x a + b) c + d = x (a c) + (b c + d)``."""
    if not (before := rewriter.before(node, AFFINE)):
        return False
    a, b = before.attributes["scale"], before.attributes["shift"]
    c, d = node.attributes["scale"], node.attributes["shift"]
    node.attributes = {"scale": a * c, "shift": b * c + d}
    return rewriter.absorb(node, before)


def _of_sum(rewriter: Rewriter, node: Node) -> bool:
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


def _of_average_pool(rewriter: Rewriter, node: Node) -> bool:
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


def _of_product(rewriter: Rewriter, node: Node) -> bool:
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
    rewriter.become(node, before)
    node.op = "Gemm" if axis else "Conv"
    rewriter.graph.scope = node.scope
    if np.any(scale != 1):
        kernel = (weights * scale.reshape(sides)).astype(weights.dtype)
        node.inputs[1] = rewriter.graph.constant(kernel, "kernel")
    shifted = (bias * scale + shift).astype(weights.dtype)
    node.inputs[2:] = [rewriter.graph.constant(shifted, "bias")]
    return True


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """Return an array as one number per channel (axis 1), or None if it has other axes."""
    if array.size == 1:
        return np.full(channels, array.reshape(()))
    sides = (1, channels, *(1,) * (rank - 2))
    return array.reshape(channels) if array.shape == sides else None


RULES: dict[str, tuple[Rule, ...]] = {
    AFFINE: (_is_identity, _of_affine, _of_sum, _of_average_pool, _of_product),
}


def written(graph: Graph, node: Node) -> list[Node]:
    """Return the operators of ONNX for AFFINE, and any other node as it is."""
    if node.op != AFFINE:
        return [node]
    graph.scope = node.scope
    scale, shift = node.attributes["scale"], node.attributes["shift"]
    steps = [("Mul", scale)] if np.any(scale != 1) else []
    steps += [("Add", shift)] if np.any(shift) else []
    if len(steps) == 2 and (normalization := _as_batch_norm(graph, node)):
        return [normalization]
    dtype, shape = graph.dtypes[node.output], graph.shapes[node.output]
    nodes, x = [], node.inputs[0]
    for op, array in steps or [("Mul", scale)]:
        constant = graph.constant(array.astype(dtype), "constant")
        name = graph.named(op.lower())
        graph.shapes[name], graph.dtypes[name] = shape, dtype
        nodes.append(Node(op, [x, constant], name, {}, node.scope))
        x = name
    nodes[-1].output = node.output
    return nodes


def _as_batch_norm(graph: Graph, node: Node) -> Node | None:
    """Return a factor and a sum per channel of maps as one operator, or None if they are something else."""
    shape, dtype = graph.shapes[node.output], graph.dtypes[node.output]
    if len(shape) != 4 or not isinstance(channels := shape[1], int):
        return None
    inputs = [node.inputs[0]]
    for key, name in (("scale", "scale"), ("shift", "bias")):
        vector = _per_channel(node.attributes[key], channels, len(shape))
        if vector is None:
            return None
        inputs.append(graph.constant(vector.astype(dtype), name))
    inputs += [
        graph.constant(np.full(channels, value, dtype), name)
        for name, value in (("mean", 0), ("var", 1))
    ]
    return Node("BatchNormalization", inputs, node.output, {"epsilon": 0.0}, node.scope)
