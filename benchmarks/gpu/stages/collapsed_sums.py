"""Are the sums of products over pixels of the collapsed 1x1 convolution right on this device?

A tensor core may truncate when it adds to a long sum, so the package sums chunks of pixels and adds the chunks in
float32 (ops/collapsed.py). Both ways are compared with float64 on the CPU, for the first stage of ResNet-50 at
batch 256: 802,816 pixels of 64 and 256 channels. Only the chunked sum has a limit; the other one is there to see.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.process import run_stage
from benchmarks.gpu.record import Recorder
from flax_resnet.ops.collapsed import CROSS_CHUNK, GRAM_CHUNK, sum_of_products

LIMIT = 3e-5


def operands(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw x [1, 1, pixels, 64] as behind a rectifier, and a gradient [1, 1, pixels, 256]; exact in bfloat16."""
    draw = np.random.default_rng(0)
    x = np.maximum(draw.standard_normal((1, 1, pixels, 64), np.float32), 0)
    g = draw.standard_normal((1, 1, pixels, 256), np.float32) + 0.5
    return x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a^T b`` over the pixels in float64."""
    total = np.zeros((a.shape[-1], b.shape[-1]))
    for start in range(0, a.shape[2], 2**14):
        part = slice(start, start + 2**14)
        total += a[0, 0, part].astype(np.float64).T @ b[0, 0, part].astype(np.float64)
    return total


def measure(recorder: Recorder, tiny: bool) -> None:
    """Check both sums, and record those that are not chunked as well."""
    pixels = 2**14 if tiny else 802816
    x, g = operands(pixels)
    sums: dict[str, tuple[Any, Any, int]] = {
        "inputs with inputs": (x, x, GRAM_CHUNK),
        "inputs with gradients": (x, g, CROSS_CHUNK),
    }
    for name, (a, b, chunk) in sums.items():
        if recorder.has(name):
            continue
        with recorder.attempt(name):
            wanted = exact(a, b)
            for own, size in ((name, chunk), (f"{name}, in one sum", pixels)):
                run = jax.jit(lambda a, b, size=size: sum_of_products(a, b, size, jnp.float32))
                got = np.asarray(run(a, b), np.float64)[0, 0]
                distance = float(np.abs(got - wanted).max() / np.abs(wanted).max())
                if size == chunk:
                    recorder.check(own, distance, LIMIT, "largest distance to float64")
                else:
                    recorder.measure(own, [distance], "of the largest", larger_is_better=False)


if __name__ == "__main__":
    run_stage("collapsed_sums", measure)
