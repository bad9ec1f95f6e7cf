"""Export a network for other runtimes: ONNX, StableHLO, TensorFlow, LiteRT, safetensors."""

from flax_resnet.inference.export.format_row import FORMATS

__all__ = ["FORMATS"]
