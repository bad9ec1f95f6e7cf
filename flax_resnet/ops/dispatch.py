"""Where and how CPU and GPU get operations of their own: the switch, the branch by platform, the pinned layouts.

XLA's kernels for TPU are left alone. On CPU, convolutions are made otherwise in ways.py (winograd.py is one way),
and programs are compiled with options. `python -m benchmarks.peers` compares whole networks. On GPU convolutions
are cuDNN's, of strided stems in a shape that it is fast at (space_to_depth.py). What lies between them is memory
traffic: the gradients in normalization.py and pooling.py make it less on both. Of the 102 GB that a textbook's
ResNet-50 moves in a step on a GPU (batch 256, bfloat16), ours moves 95 (`benchmarks.gpu_program`).

On one CPU device arrays are pinned to the layout that their shape says. Left to itself, XLA chooses layouts for
the dots that come last and transposes everything around them: the operations of a ResNet-18 step took 4.6 s
together (224 px, batch 16, two cores), pinned 1.1 s. A pin makes XLA gather an array that is spread over
devices, so several devices do without, and without what needs it.

The environment variable FLAX_RESNET_OPS turns all of it off ("plain"), or on wherever the program runs:
that of a CPU, for several devices too ("cpu"), or that of a GPU ("gpu"). It is read when a function is traced or
a program made; what `jit` has compiled stays as it is. What is lowered here has gradients, on CPU of any order, but
no forward mode (`jax.jvp`), and its pinned layouts cannot be serialised for CPU by `jax.export` (for another
platform than the one that traces, no layout is pinned, and with dimensions that are symbols nothing is lowered);
"plain" has all.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from flax_resnet.errors import ConfigError

Array = jax.Array

# XLA:CPU gives convolutions to YNNPACK unless told to give it dots and sums only (jaxlib 0.10). YNNPACK runs those
# with few output channels in one thread. Batch 500, 31x31, 24 to 32 channels, on two cores of an Intel Xeon
# (AVX-512): 57, 71, 324 ms for y, dx, dkernel become 32, 42, 104.
CPU_COMPILER = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

SWITCH = "FLAX_RESNET_OPS"
CHOICES = ("auto", "plain", "cpu", "gpu")


def has_own_form(x: Array, *platforms: str) -> bool:
    """Whether an operation on x is lowered in platforms' own way: on them, unless the environment says otherwise.

    What is chosen by shape needs one: dimensions that are symbols (`jax.export`) leave everything as it is.

    Elsewhere the operations stay bare, so that every transformation of JAX, jvp included, goes through them.

    Args:
      x: an operand.
      *platforms: "cpu", "gpu".

    Raises:
      ConfigError: the environment names no choice.
    """
    choice = os.environ.get(SWITCH, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{SWITCH}={choice}: must be one of {', '.join(CHOICES)}")
    if not all(isinstance(side, int) for side in x.shape):
        return False
    return choice in platforms or (choice == "auto" and _devices()[0] in platforms)


def pins_layout() -> bool:
    """Whether layouts are pinned: there is one device, a CPU, or the environment says "cpu"."""
    return os.environ.get(SWITCH) == "cpu" or _devices() == ("cpu", 1)


def compiler_options() -> dict[str, str]:
    """Returns what `jax.jit` is to compile a program with that runs a network on this platform.

    On CPU, that convolutions are XLA's own; nothing elsewhere, for "plain" and "gpu", where XLA_FLAGS has the
    option already, and where XLA does not know it. It is for programs: JAX takes no options for a jitted function
    that another traces.
    """
    if os.environ.get(SWITCH) in ("plain", "gpu") or _devices()[0] != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in CPU_COMPILER.items() if name not in flags}
    return options if _compiles(tuple(options.items())) else {}


@functools.cache
def _compiles(options: tuple[tuple[str, str], ...]) -> bool:
    """Whether XLA knows the options; as flags of the environment, those that it does not know end the process."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def _devices() -> tuple[str, int]:
    """Returns the platform and the number of its devices; where none answers, shapes can still be traced."""
    try:
        return jax.default_backend(), jax.device_count()
    except RuntimeError:
        return "", 0


def pinned(x: Array) -> Array:
    """Gives an array the layout that its shape says, the last axis contiguous; on several devices, leaves it."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if pins_layout() else x


def fusion_barrier(x: Array) -> Array:
    """Pins an array, and keeps it out of the loop that computes what it is made into.

    Fused, sums of shifted arrays become scalar loops.
    """
    return lax.optimization_barrier(pinned(x))


def gradient_fusion_barrier(x: Array) -> Array:
    """Returns x, whose gradient on CPU is `fusion_barrier` from what reads it.

    A sum over it would otherwise be YNNPACK's, with all that the gradient is made of: with a GELU's slope a tenth
    of a step (500 maps of 31x31x24, 613 ms instead of 560, two cores of an Intel Xeon).
    """
    return _gradient_fusion_barrier(x) if has_own_form(x, "cpu") else x


@jax.custom_vjp
def _gradient_fusion_barrier(x: Array) -> Array:
    return x


_gradient_fusion_barrier.defvjp(lambda x: (x, None), lambda _, dx: (fusion_barrier_on_cpu(dx),))


def fusion_barrier_on_cpu(x: Array) -> Array:
    """Does as `fusion_barrier` where the program runs on CPU, and nothing elsewhere."""
    return on_cpu(lax.optimization_barrier, lambda x: x, x)


def on_cpu(function: Callable, otherwise: Callable, *arguments: Array) -> Any:
    """Calls one function where the program runs on CPU, with pinned layouts, and another elsewhere.

    The program may be lowered for another platform than the one it is traced on (`jax.export`).
    """
    return lax.platform_dependent(
        *arguments,
        cpu=lambda *xs: jax.tree.map(pinned, function(*map(pinned, xs))),
        default=otherwise,
    )
