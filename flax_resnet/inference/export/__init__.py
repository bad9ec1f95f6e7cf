"""Export a network for other runtimes: ONNX, StableHLO, TensorFlow, LiteRT, safetensors."""

from flax_resnet.inference.export.exporting import export
from flax_resnet.inference.export.format_row import FORMATS
from flax_resnet.inference.export.replaying import replay

__all__ = ["FORMATS", "export", "replay"]
