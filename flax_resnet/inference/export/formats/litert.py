"""LiteRT, formerly TensorFlow Lite, for phones and small devices."""

import importlib.util
import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np

from flax_resnet.inference.export.format_row import FLATBUFFER, FormatRow, Runtime
from flax_resnet.inference.export.formats.saved_model import write_saved_model
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature

LOAD = """
from ai_edge_litert.interpreter import Interpreter  # or tf.lite.Interpreter

model = Interpreter("model.tflite").get_signature_runner()
(outputs,) = model(images=images).values()  # {input}
"""


def _write(program: Program, path: pathlib.Path) -> None:
    import tensorflow as tf

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write_saved_model(program, pathlib.Path(folder), "float32")
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if program.signature.precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    del signature
    interpreter = _interpreter(path)
    (images_in,), (outputs_out,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(outputs_out["index"]))

    return run


def _interpreter(path: pathlib.Path) -> Any:
    """Return LiteRT's interpreter if it is installed, or else TensorFlow's copy of it."""
    if importlib.util.find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_path=str(path))
    import tensorflow as tf

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of its removal
        return tf.lite.Interpreter(model_path=str(path))


ROWS = (
    FormatRow(
        name="litert",
        help="LiteRT (TensorFlow Lite), for phones and small devices",
        file="model.tflite",
        write=_write,
        open=_open,
        runtimes=("ai_edge_litert", "tensorflow"),
        largest=FLATBUFFER,
        load=LOAD,
        packages=("tensorflow",),
        supports={"preprocessing": ("none", "normalize")},
    ),
)
