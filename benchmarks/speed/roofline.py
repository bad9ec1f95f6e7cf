"""The least time that a network can take on a device, by what the device was measured to do.

Convolutions and linear layers are counted, one after the other; each takes the longer of its arithmetic and
its memory traffic: every map written once and read once, the parameters read once. Everything else is taken for
free, as if fused. A way to convolve with fewer multiplications (Winograd) can be faster than that.

Source: Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flax_resnet.models.summary import Summary

COPIED = {"cpu": 2**28, "gpu": 2**30}  # bytes, far more than any cache
# Of a measurement. Queued, as in training: alone, a GPU's call takes 0.1 ms more, as long as 0.3 GB.
CALLS = {"cpu": 1, "gpu": 10}


class Limits(NamedTuple):
    """What a device was measured to do.

    Attributes:
      flops: largest rate of a matrix product in a dtype, floating-point operations a second.
      bandwidth: bytes read and written a second by an elementwise operation on much memory.
    """

    flops: float
    bandwidth: float


class Cost(NamedTuple):
    """What a batch costs.

    Attributes:
      flops: floating-point operations, two of each multiply-add.
      seconds: the least time.
    """

    flops: float
    seconds: float


def limits(dtype: str) -> Limits:
    """Measures the first device, and multiplies by the number of devices, but on CPU, which they share."""
    on_cpu = jax.default_backend() == "cpu"
    kind = "cpu" if on_cpu else "gpu"
    count = 1 if on_cpu else jax.device_count()
    sizes = (1024, 2048) if on_cpu else (4096, 8192)
    rates = [
        2 * size**3 / _seconds(lambda x, y, over=over: lax.dot_general(x, y, ((over), ((), ()))), kind, x, x)
        for size in sizes
        for x in [jax.random.normal(jax.random.key(0), (size, size), dtype)]  # a GPU multiplies ones faster
        for over in (((1,), (0,)), ((1,), (1,)))
    ]  # fmt: skip
    moved = jnp.ones(COPIED[kind] // 4, jnp.float32)
    bandwidth = 2 * COPIED[kind] / _seconds(lambda x: x + 1, kind, moved)
    return Limits(max(rates) * count, bandwidth * count)


def _seconds(function: Callable, kind: str, *arguments: jax.Array) -> float:
    """Returns the median time of a call, of ten measurements."""
    program = jax.jit(function).lower(*arguments).compile()
    times = []
    for _ in range(11):
        began = time.perf_counter()
        for _ in range(CALLS[kind]):
            result = program(*arguments)
        result.block_until_ready()
        times.append((time.perf_counter() - began) / CALLS[kind])
    return statistics.median(times[1:])


def cost(summary: Summary, limits: Limits, *, train: bool) -> Cost:
    """Returns what a batch of a summary costs: in inference, or in training's forward and backward pass.

    Training does each layer three times, forward and for both gradients; only the images' own is not computed.
    """
    itemsize = jnp.dtype(summary.dtype).itemsize
    flops = seconds = 0.0
    batch = summary.input_shape[0]
    for number, layer in enumerate(layer for layer in summary.layers if layer.macs):
        work = 2.0 * layer.macs * batch
        numbers = 2 * math.prod(layer.output_shape) + layer.parameters
        times = 1 if not train else 3 if number else 2
        flops += times * work
        seconds += times * max(work / limits.flops, numbers * itemsize / limits.bandwidth)
    return Cost(flops, seconds)
