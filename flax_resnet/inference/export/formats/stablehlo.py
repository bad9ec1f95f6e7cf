"""StableHLO: one file for CPU, CUDA and TPU that JAX alone loads."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from flax_resnet.inference.export.equations import Equation, as_float16, bound, equations_of
from flax_resnet.inference.export.format_row import FLATBUFFER, FormatRow, Runtime
from flax_resnet.inference.export.program import Program, exact
from flax_resnet.inference.export.signature import Signature

PLATFORMS = ("cpu", "cuda", "tpu")
LOAD = """
import jax, numpy as np
from jax import export

model = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
outputs = np.asarray(jax.jit(model.call)(images))  # {input}
"""


def _write(program: Program, path: pathlib.Path) -> None:
    equations, signature = equations_of(program), program.signature
    half = signature.precision == "float16"
    stored = as_float16(equations.constants) if half else equations.constants

    def model(images: jax.Array) -> jax.Array:
        constants = {number: _wide(jnp.asarray(array)) for number, array in stored.items()}
        logits: jax.Array = equations.run(images, constants, _apply)
        return jax.nn.softmax(logits, axis=-1) if signature.softmax else logits

    with exact():
        exported = jax_export.export(jax.jit(model), platforms=PLATFORMS)(equations.images)
    path.write_bytes(exported.serialize())


def _wide(array: jax.Array) -> jax.Array:
    """Convert float16 to float32 in the exported program, so that its constants take half the space."""
    return array.astype(jnp.float32) if array.dtype == jnp.float16 else array


def _apply(step: Equation, operands: list) -> Sequence[jax.Array]:
    return [value for _, value in bound(step, operands)]


def _open(path: pathlib.Path, signature: Signature) -> Runtime:
    del signature
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    call = jax.jit(exported.call)
    return lambda images: np.asarray(call(images))


ROWS = (
    FormatRow(
        name="stablehlo",
        help="StableHLO for CPU, CUDA and TPU; jax.export loads it",
        file="model.stablehlo",
        write=_write,
        open=_open,
        runtimes=("jax",),
        largest=FLATBUFFER,
        load=LOAD,
        supports={"preprocessing": ("none", "normalize")},
    ),
)
