"""Compute a lower bound for the time of a network on a device, from measured limits of the device.

The bound is a sum over convolutions and linear layers. The time of a layer is the larger of two times:

    arithmetic    FLOPs / (largest FLOP/s)
    memory        bytes / bandwidth; the output is written once and read once, the parameters are read once

All other operations are assumed to be fused and to take no time. An algorithm with fewer multiplications (Winograd)
can be faster than the bound.

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

COPIED = {"cpu": 2**28, "gpu": 2**30}  # bytes of the copied array; far larger than any cache
# Calls per measurement, queued as in training. Without a queue, a call on a GPU takes 0.1 ms longer, which is as
# long as moving 0.3 GB.
CALLS = {"cpu": 1, "gpu": 10}


class Limits(NamedTuple):
    """The measured limits of a device.

    Attributes:
      flops: largest FLOP/s of a matrix product in a dtype.
      bandwidth: bytes per second that an elementwise operation on a large array reads and writes.
    """

    flops: float
    bandwidth: float


class Cost(NamedTuple):
    """The cost of a batch.

    Attributes:
      flops: floating-point operations; a multiply-add counts as two.
      seconds: lower bound of the time.
    """

    flops: float
    seconds: float


def limits(dtype: str) -> Limits:
    """Measure the limits of the first device, and multiply them by the number of devices.

    On CPU they are not multiplied, because virtual devices share one CPU.
    """
    on_cpu = jax.default_backend() == "cpu"
    kind = "cpu" if on_cpu else "gpu"
    count = 1 if on_cpu else jax.device_count()
    sizes = (1024, 2048) if on_cpu else (4096, 8192)
    rates = [
        2 * size**3 / _seconds(lambda x, y, over=over: lax.dot_general(x, y, ((over), ((), ()))), kind, x, x)
        for size in sizes
        for x in [jax.random.normal(jax.random.key(0), (size, size), dtype)]  # ones would be faster on a GPU
        for over in (((1,), (0,)), ((1,), (1,)))
    ]  # fmt: skip
    moved = jnp.ones(COPIED[kind] // 4, jnp.float32)
    bandwidth = 2 * COPIED[kind] / _seconds(lambda x: x + 1, kind, moved)
    return Limits(max(rates) * count, bandwidth * count)


def _seconds(function: Callable, kind: str, *arguments: jax.Array) -> float:
    """Return the time of a call: the median of ten measurements."""
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
    """Return the cost of a batch in inference, or in the forward and backward passes of training.

    In training, each layer counts three times: forward, input gradient and kernel gradient. The first layer has no
    input gradient.
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
