"""A graph of ONNX operators with one output each, before it is written."""

import collections
import dataclasses
import hashlib
from typing import Any

import numpy as np

# A length: a whole number, or a symbolic dimension of `jax.export` for the free batch size.
Dim = Any
Shape = tuple[Dim, ...]


@dataclasses.dataclass(eq=False)
class Node:
    """One operator.

    Attributes:
      op: an ONNX operator, or AFFINE until `simplify` replaces it.
      inputs: names of tensors, and of constants of the graph.
      output: name of the output.
      attributes: the operator's attributes.
      scope: name of the linen module that the node computes a part of, such as "layer1_0/conv1".
    """

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]
    scope: str


# ``x * scale + shift``; the attributes are float64 arrays that broadcast against x in its layout.
AFFINE = "Affine"


class Graph:
    """Nodes in the order of their execution, with the constants that they use.

    Attributes:
      nodes: the operators.
      constants: {name: array}; weights and the shapes, axes and bounds that operators take as inputs.
      shapes: {name of a tensor: its shape}, in ONNX's order of axes.
      dtypes: {name of a tensor: its dtype}.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.scope = ""
        self._used: dict[str, int] = {}
        self._plain: dict[str, str] = {}  # {name: the name without its number}

    def add(
        self, op: str, inputs: list[str], shape: Shape, dtype: Any = np.float32, **attributes: Any
    ) -> str:
        """Append a node in the current scope, and return the name of its output."""
        output = self.named(op.lower())
        self.nodes.append(Node(op, inputs, output, attributes, self.scope))
        self.shapes[output], self.dtypes[output] = tuple(shape), np.dtype(dtype)
        return output

    def constant(self, array: np.ndarray, name: str) -> str:
        """Add a constant in the current scope, and return its full name."""
        full = self.named(name)
        self.constants[full] = np.asarray(array)
        return full

    def integers(self, values: Any, name: str) -> str:
        """Add a vector of int64, such as axes."""
        return self.constant(np.asarray(values, np.int64), name)

    def named(self, name: str) -> str:
        """Return a new name in the current scope."""
        full = f"{self.scope}/{name}" if self.scope else name
        number = self._used[full] = self._used.get(full, 0) + 1
        numbered = full if number == 1 else f"{full}_{number}"
        self._plain[numbered] = full
        return numbered

    def finish(self, input: str, output: str, output_name: str) -> None:
        """Rename the output, and number the other names anew: simplifying has left gaps."""
        names, used = {input: input, output: output_name, "": ""}, collections.Counter[str]()

        def renamed(name: str, plain: str) -> str:
            if name not in names:
                used[plain] += 1
                names[name] = plain if used[plain] == 1 else f"{plain}_{used[plain]}"
            return names[name]

        for node in self.nodes:
            node.inputs = [renamed(name, self._plain.get(name, name)) for name in node.inputs]
            kind = node.op.lower()
            node.output = renamed(node.output, f"{node.scope}/{kind}" if node.scope else kind)
        self.constants = {
            names[name]: array for name, array in self.constants.items() if name in names
        }
        self.shapes = {names[name]: shape for name, shape in self.shapes.items() if name in names}
        self.dtypes = {names[name]: dtype for name, dtype in self.dtypes.items() if name in names}

    def share_constants(self) -> None:
        """Keep one of several equal constants: each view of an image is computed with the same weights."""
        firsts: dict[tuple, str] = {}
        same = {}
        for name, array in self.constants.items():
            digest = hashlib.blake2b(np.ascontiguousarray(array).data).digest()
            same[name] = firsts.setdefault((array.dtype, array.shape, digest), name)
        self.constants = {name: self.constants[name] for name in firsts.values()}
        for node in self.nodes:
            node.inputs = [same.get(name, name) for name in node.inputs]
