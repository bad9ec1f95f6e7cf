"""Simplify a graph: fold factors and sums into the operators before them, and write pooling as pooling."""

from flax_resnet.inference.export.onnx_graph import affine_rules, structure_rules
from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.rewriter import Rewriter


def simplify(graph: Graph, output: str) -> str:
    """Simplify a graph in place, and return the name of its output, which may have changed.

    Each node, in the order of execution, absorbs the nodes before it that nothing else uses.
    """
    _remove_unused(graph, output)
    rewriter = Rewriter(graph, output, affine_rules.RULES | structure_rules.RULES)
    for node in list(graph.nodes):
        rewriter.visit(node)
    output = rewriter.name(output)
    _remove_unused(graph, output)
    graph.nodes = [written for node in graph.nodes for written in affine_rules.written(graph, node)]
    _remove_unused(graph, output)
    return output


def _remove_unused(graph: Graph, output: str) -> None:
    """Remove the nodes and constants that the output does not depend on."""
    needed, nodes = {output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
            nodes.append(node)
    graph.nodes = nodes[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in needed}
