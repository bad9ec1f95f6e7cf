"""The input of a graph: normalised maps, or uint8 images that the model itself resizes, crops and transposes."""

from typing import Any

import jax
import numpy as np

from flax_resnet.data.data_section import Data
from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.values import Traced
from flax_resnet.inference.export.program import Program

NAME = "images"
CHANNELS_FIRST = (0, 3, 1, 2)
MODES = {"bilinear": "linear", "bicubic": "cubic"}


def add_input(graph: Graph, program: Program, image: jax.ShapeDtypeStruct) -> Traced:
    """Add the input of a program to a graph, and return the tensor that the program receives, in NCHW.

    Args:
      graph: the graph.
      program: the program.
      image: its input, `program.input()`; two of them have different symbolic dimensions.
    """
    signature = program.signature
    first = tuple(image.shape[axis] for axis in CHANNELS_FIRST)
    name = NAME
    graph.dtypes[NAME] = np.dtype(image.dtype)
    graph.shapes[NAME] = image.shape if signature.takes_bytes else first
    graph.scope = "preprocessing"
    if signature.preprocessing == "resize":
        graph.shapes[NAME] = (image.shape[0], "height", "width", 3)
        name = _resized(graph, program.config.data)
    elif signature.takes_bytes:  # as bytes: four times faster than the floats
        name = graph.add("Transpose", [NAME], first, np.uint8, perm=CHANNELS_FIRST)
    graph.shapes[name], graph.scope = first, ""
    return Traced(name, image.shape, image.shape, CHANNELS_FIRST)


def _resized(graph: Graph, config: Data) -> str:
    """Resize and crop uint8 [N, H, W, 3] to NCHW, in the arithmetic of `data.images.prepare_image`.

    ONNX Runtime resizes as Pillow does: less than one pixel of a thousand of a photo differs, by one level.
    Pillow 13 resizes tall images vertically first, which rounds other pixels.
    """
    size = config.image_size
    batch, height, width, _ = graph.shapes[NAME]
    planes = graph.add(
        "Transpose", [NAME], (batch, 3, height, width), np.uint8, perm=CHANNELS_FIRST
    )

    def whole(op: str, *operands: Any, **attributes: Any) -> str:
        """Add an operator on pairs (height, width) of whole numbers."""
        names = [x if isinstance(x, str) else graph.integers(x, "number") for x in operands]
        return graph.add(op, names, (2,), np.int64, **attributes)

    sizes = graph.integers([size, size], "size")
    target = sizes
    if config.eval_crop != "resize":
        short = int(size / config.eval_crop_fraction + 1e-6)
        sides = whole("Shape", NAME, start=1, end=3)
        least = whole("ReduceMin", sides, keepdims=1)
        target = whole("Div", whole("Mul", sides, [short]), least)
    outer = whole("Shape", planes, start=0, end=2)
    lengths = graph.add("Concat", [outer, target], (4,), np.int64, axis=0)
    resized = graph.add(
        "Resize", [planes, "", "", lengths], (batch, 3, "rows", "columns"), np.uint8,
        mode=MODES[config.interpolation], antialias=1, cubic_coeff_a=-0.5, exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    if config.eval_crop == "resize":
        return resized
    # Half of what is left over; half a pixel is rounded to an even number, as Python's round does.
    half = whole("Div", extra := whole("Sub", target, sizes), [2])
    odd, half_odd = whole("Mod", extra, [2]), whole("Mod", half, [2])
    start = whole("Add", half, whole("Mul", odd, half_odd))
    bounds = [start, whole("Add", start, sizes), graph.integers([2, 3], "axes")]
    return graph.add("Slice", [resized, *bounds], (batch, 3, size, size), np.uint8)
