"""The state of a rewrite of a graph, for the rules."""

import collections
from collections.abc import Callable, Mapping

from flax_resnet.inference.export.onnx_graph.graph import Graph, Node


class Rewriter:
    """The nodes before the one that is visited: who made a tensor, how often it is used, and its new name."""

    def __init__(self, graph: Graph, output: str, rules: Mapping[str, tuple["Rule", ...]]) -> None:
        self.graph = graph
        self._producers: dict[str, Node] = {}
        self._uses = collections.Counter(name for node in graph.nodes for name in node.inputs)
        self._uses[output] += 1
        self._renamed: dict[str, str] = {}
        self._rules = rules

    def name(self, tensor: str) -> str:
        """Return the name of a tensor whose node may have been removed."""
        while tensor in self._renamed:
            tensor = self._renamed[tensor]
        return tensor

    def visit(self, node: Node) -> None:
        """Apply the rules to a node until none applies."""
        node.inputs = [self.name(tensor) for tensor in node.inputs]
        while any(rule(self, node) for rule in self._rules.get(node.op, ())):
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

    def release(self, tensor: str) -> None:
        """Use a tensor once less."""
        self._uses[tensor] -= 1
        if not self._uses[tensor] and tensor in self._producers:
            for name in self._producers[tensor].inputs:
                self.release(name)

    def absorb(self, node: Node, before: Node) -> bool:
        """Let a node take the first input of the node before it."""
        node.inputs[0] = before.inputs[0]
        return True

    def become(self, node: Node, before: Node, **attributes: object) -> bool:
        """Let a node do what the node before it did, with other attributes."""
        node.op, node.inputs, node.scope = before.op, list(before.inputs), before.scope
        node.attributes = before.attributes | attributes
        return True


# Changes a node, and returns whether it did.
Rule = Callable[[Rewriter, Node], bool]
