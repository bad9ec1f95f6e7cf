"""Write a graph as an ONNX model."""

import contextlib
import pathlib
from typing import Any, BinaryIO

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import Graph, Node
from flax_resnet.version import __version__

OPSET = 18  # of December 2022: ONNX Runtime 1.14 and later
IR_VERSION = 8
LARGEST_MESSAGE = 2**31 - 2**24  # bytes; protobuf stops at 2 GiB
LARGEST_INLINE = (
    1024  # bytes of a constant that stays in the model file when the weights are beside it
)


def write_model(
    graph: Graph,
    inputs: str,
    outputs: str,
    path: pathlib.Path,
    *,
    batch_size: int | None,
    metadata: dict[str, str],
) -> None:
    """Write a model to a file, and check it with ONNX's own checker.

    Weights of more than 2 GB are written to ``PATH.data`` beside it, as ONNX's external data.

    Args:
      graph: the graph, simplified; its constants are removed.
      inputs: name of its input.
      outputs: name of its output.
      path: the file.
      batch_size: number of images that it takes; None for any number.
      metadata: texts that the model carries.
    """
    import onnx
    from onnx import helper

    beside = sum(array.nbytes for array in graph.constants.values()) > LARGEST_MESSAGE
    model = helper.make_model(
        helper.make_graph(
            [_node(node, index) for index, node in enumerate(graph.nodes)],
            "flax_resnet",
            [_value(inputs, graph, batch_size)],
            [_value(outputs, graph, batch_size)],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="flax_resnet",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata)
    with contextlib.ExitStack() as stack:
        data = path.with_name(f"{path.name}.data")
        stream = stack.enter_context(data.open("wb")) if beside else None
        for name in list(graph.constants):  # each is freed when it is written
            _store(model.graph.initializer.add(), name, graph.constants.pop(name), stream)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def _store(tensor: Any, name: str, array: np.ndarray, stream: BinaryIO | None) -> None:
    """Store a constant in a TensorProto; its data in `stream` if there is one and they are large."""
    from onnx import TensorProto, helper

    tensor.name = name
    tensor.dims.extend(array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    if stream is None or raw.nbytes <= LARGEST_INLINE:
        tensor.raw_data = raw.tobytes()
        return
    place = {"location": pathlib.Path(stream.name).name, "offset": stream.tell()}
    stream.write(raw.data)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (place | {"length": raw.nbytes}).items():
        tensor.external_data.add(key=key, value=str(value))


def _node(node: Node, index: int) -> Any:
    from onnx import helper

    attributes: dict[str, Any] = {
        key: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for key, value in node.attributes.items()
    }
    name = f"{node.scope or 'network'}/{node.op}_{index}"
    return helper.make_node(node.op, node.inputs, [node.output], name, **attributes)


def _value(name: str, graph: Graph, batch_size: int | None) -> Any:
    from onnx import helper

    dtype = helper.np_dtype_to_tensor_dtype(graph.dtypes[name])
    batch, *sides = (side if isinstance(side, int) else str(side) for side in graph.shapes[name])
    return helper.make_tensor_value_info(name, dtype, [batch_size or batch, *sides])
