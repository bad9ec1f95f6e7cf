"""Store the kernels of a graph in float16."""

import numpy as np

from flax_resnet.inference.export.equations import as_float16
from flax_resnet.inference.export.onnx_graph.graph import Graph, Node


def store_float16(graph: Graph) -> None:
    """Store kernels in float16; the model converts them to float32 when it is loaded.

    Raises:
      ConfigError: a weight is too large for float16.
    """
    casts = []
    for name, array in as_float16(graph.constants).items():
        if array.dtype == np.float16:
            stored = f"{name}_float16"
            del graph.constants[name]
            graph.constants[stored] = array
            casts.append(Node("Cast", [stored], name, {"to": np.dtype(np.float32)}, ""))
    graph.nodes = [*casts, *graph.nodes]
