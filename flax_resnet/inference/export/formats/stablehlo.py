"""StableHLO: one file for CPU, CUDA and TPU that JAX alone loads."""

import pathlib

import jax
import numpy as np
from jax import export as jax_export

from flax_resnet.inference.export.format_row import FormatRow, Runtime
from flax_resnet.inference.export.program import Program, exact
from flax_resnet.inference.export.signature import Signature

PLATFORMS = ("cpu", "cuda", "tpu")


def _write(program: Program, path: pathlib.Path) -> None:
    def model(images: jax.Array) -> jax.Array:
        return program.outputs(program.variables, images)

    with exact():
        exported = jax_export.export(jax.jit(model), platforms=PLATFORMS)(program.input())
    path.write_bytes(exported.serialize())


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    del signature
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(exported.call(images))


ROWS = (
    FormatRow(
        name="stablehlo",
        help="StableHLO for CPU, CUDA and TPU; jax.export loads it",
        file="model.stablehlo",
        write=_write,
        open=_open,
        supports={"preprocessing": ("none", "normalize"), "precision": ("float32",)},
    ),
)
