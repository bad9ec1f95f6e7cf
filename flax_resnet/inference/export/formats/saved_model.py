"""TensorFlow's SavedModel, of plain operations of TensorFlow, for TensorFlow and TensorFlow Serving."""

import pathlib

import numpy as np

from flax_resnet.errors import OutputError, one_line
from flax_resnet.inference.export.format_row import FormatRow, Runtime
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature

LOAD = """
import tensorflow as tf

model = tf.saved_model.load("saved_model").signatures["serving_default"]
(outputs,) = model(images=tf.constant(images)).values()  # {input}
"""


def _write(program: Program, path: pathlib.Path) -> None:
    write_saved_model(program, path, program.signature.precision)


def write_saved_model(program: Program, path: pathlib.Path, precision: str) -> None:
    """Write a program as a SavedModel with one signature, ``serving_default``."""
    import tensorflow as tf

    from flax_resnet.inference.export.tensorflow_graph import ProgramModule

    module = ProgramModule(program, precision)
    signatures = {"serving_default": module.serve.get_concrete_function()}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except tf.errors.OpError as error:  # of a full disk, for one
        raise OutputError(f"cannot be written: {one_line(error)}", key=path) from error


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    import tensorflow as tf

    del signature
    # On a GPU, TensorFlow would compute in TF32, with three digits.
    with tf.device("CPU"):
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]

    def run(images: np.ndarray) -> np.ndarray:
        with tf.device("CPU"):
            (outputs,) = serve(images=tf.constant(images)).values()
        return np.asarray(outputs.numpy())

    return run


ROWS = (
    FormatRow(
        name="saved_model",
        help="TensorFlow's SavedModel, without XLA",
        file="saved_model",
        write=_write,
        open=_open,
        runtimes=("tensorflow",),
        load=LOAD,
        packages=("tensorflow",),
    ),
)
