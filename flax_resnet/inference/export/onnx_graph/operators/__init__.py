"""How each primitive of JAX is written with ONNX operators (opset 18)."""

from flax_resnet.inference.export.onnx_graph.operators import (
    elementwise,
    products,
    reductions,
    reshaping,
)
from flax_resnet.inference.export.onnx_graph.values import Writer

WRITERS: dict[str, Writer] = {
    **elementwise.WRITERS,
    **reshaping.WRITERS,
    **reductions.WRITERS,
    **products.WRITERS,
}

__all__ = ["WRITERS", "elementwise"]
