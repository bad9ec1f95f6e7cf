"""ONNX, for ONNX Runtime, TensorRT, OpenVINO and many others."""

import json
import pathlib

import numpy as np

from flax_resnet.inference.export.format_row import FormatRow, Runtime
from flax_resnet.inference.export.onnx_graph.float16 import store_float16
from flax_resnet.inference.export.onnx_graph.model import write_model
from flax_resnet.inference.export.onnx_graph.preprocessing import NAME
from flax_resnet.inference.export.onnx_graph.simplify import simplify
from flax_resnet.inference.export.onnx_graph.trace import traced_graph
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature

LOAD = """
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
(outputs,) = model.run(None, {"images": images})  # {input}
"""


def _write(program: Program, path: pathlib.Path) -> None:
    signature = program.signature
    graph, outputs = traced_graph(program)
    outputs = simplify(graph, outputs)
    if signature.softmax:
        outputs = graph.add("Softmax", [outputs], graph.shapes[outputs], axis=-1)
    graph.share_constants()
    graph.finish(NAME, outputs, name := "probabilities" if signature.softmax else "logits")
    if signature.precision == "float16":
        store_float16(graph)
    write_model(
        graph,
        NAME,
        name,
        path,
        batch_size=signature.batch_size,
        metadata=_metadata(program),
    )


def _metadata(program: Program) -> dict[str, str]:
    """Return the names of the classes and the normalisation, for readers of the file alone."""
    augment, data = program.config.augment, program.config.data
    about = {"class_names": program.class_names, "preprocessing": program.signature.preprocessing}
    about |= {"mean": augment.mean, "std": augment.std, "interpolation": data.interpolation}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()
    }


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        (outputs,) = session.run(None, {"images": images})
        return np.asarray(outputs)

    return run


ROWS = (
    FormatRow(
        name="onnx",
        help="ONNX, for ONNX Runtime, TensorRT and OpenVINO",
        file="model.onnx",
        write=_write,
        open=_open,
        packages=("onnx",),
        runtimes=("onnxruntime",),
        load=LOAD,
        layout="NCHW",
    ),
)
