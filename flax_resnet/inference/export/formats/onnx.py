"""ONNX, for ONNX Runtime, TensorRT, OpenVINO and many others."""

import pathlib

import numpy as np

from flax_resnet.inference.export.format_row import FormatRow, Runtime
from flax_resnet.inference.export.onnx_graph.model import write_model
from flax_resnet.inference.export.onnx_graph.simplify import simplify
from flax_resnet.inference.export.onnx_graph.trace import traced_graph
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature


def _write(program: Program, path: pathlib.Path) -> None:
    signature = program.signature
    graph, inputs, outputs = traced_graph(program, channels_first=not signature.takes_bytes)
    outputs = simplify(graph, outputs)
    name = "logits"
    if signature.softmax:
        shape = graph.shapes[outputs]
        outputs, name = graph.add("Softmax", [outputs], shape, axis=-1), "probabilities"
    for node in graph.nodes:
        if node.output == outputs:
            node.output = name
    graph.shapes[name], graph.dtypes[name] = graph.shapes[outputs], graph.dtypes[outputs]
    half = signature.precision == "float16"
    write_model(graph, inputs, name, path, half=half, metadata={})


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
        supports={"preprocessing": ("none", "normalize")},
        packages=("onnx", "onnxruntime"),
        layout="NCHW",
    ),
)
