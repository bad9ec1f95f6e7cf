"""Select our own operations on CPU and GPU: the switch, the branch by platform, and the pinned layouts.

- CPU: conv.py replaces XLA's convolutions (winograd.py is one of the algorithms), and programs are compiled with
  `compiler_options`. `python -m benchmarks.speed.vs_torch` compares whole networks.
- GPU: cuDNN computes the convolutions; strided stems are reshaped to a form in which it is fast
  (space_to_depth.py).
- CPU and GPU: the gradients in batch_norm.py and max_pool.py reduce the memory traffic between convolutions.
- GPU: collapsed.py computes a 1x1 convolution and the batch normalisation behind it as one product, and relu.py the
  sum of branch and shortcut in the convolution's kernel. A plain ResNet-50 moves 102 GB in a training step (batch
  256, bfloat16); ours moves 72 GB (`benchmarks.lab.gpu_program`).
- TPU: XLA's own operations.

On a single CPU device, arrays are pinned to the default layout, last axis contiguous. Without the pins, XLA chooses
layouts for the dots that come last and transposes everything around them: all operations of a ResNet-18 step
(224 px, batch 16, two cores) take 4.6 s without the pins and 1.1 s with them. A pin makes XLA gather an array that
is sharded over devices. So several devices use no pins, and no operation that needs them.

The environment variable FLAX_RESNET_OPS selects the operations:
- "auto", the default: by platform, as above.
- "plain": XLA's own operations everywhere.
- "cpu": the CPU operations on every platform, also with several devices.
- "gpu": the GPU operations on every platform.
The variable is read when a function is traced or a program is built; a compiled `jit` function does not change.

FLAX_RESNET_GPU_FORMS selects other forms of single operations on GPU, to compare them: "product=dot,relu_mask=sum".
`GPU_FORMS` lists them.

Limits of our operations ("plain" has none of them):
- They have gradients (on CPU, of any order), but no forward mode (`jax.jvp`).
- `jax.export` cannot serialise the pinned layouts for CPU. An export for another platform pins no layout.
- With symbolic dimensions, XLA's own operations are used.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType

from flax_resnet.errors import ConfigError

Array = jax.Array

# By default, XLA:CPU gives convolutions to YNNPACK (jaxlib 0.10), which runs those with few output channels in one
# thread. These options restrict YNNPACK to dots and sums. Batch 500, 31x31, 24 to 32 channels, on two cores of an
# Intel Xeon (AVX-512): y, dx, dkernel fall from 57, 71, 324 ms to 32, 42, 104.
CPU_COMPILER = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

SWITCH = "FLAX_RESNET_OPS"
CHOICES = ("auto", "plain", "cpu", "gpu")
# {operation: its forms on GPU}. The first one is the default.
GPU_FORMS = {
    "relu_mask": ("output", "sum"),  # from which the gradient of relu.py computes its mask
    "relu_slope": ("sign", "comparison"),  # of relu.py within batch_norm.py
    "product": ("convolution", "dot"),  # the products of collapsed.py with activations
    "input_gradient": ("convolution", "dot"),  # of a 1x1 convolution with fewer outputs than inputs
}
FORMS_SWITCH = "FLAX_RESNET_GPU_FORMS"
_selected: contextvars.ContextVar[str] = contextvars.ContextVar("selected", default="")


@contextlib.contextmanager
def operations(choice: str) -> Iterator[None]:
    """Trace with these operations inside the block, whatever FLAX_RESNET_OPS says; `choice` is one of `CHOICES`."""
    token = _selected.set(choice)
    try:
        yield
    finally:
        _selected.reset(token)


def _choice() -> str:
    return _selected.get() or os.environ.get(SWITCH, "auto")


def has_own_form(x: Array, *platforms: str) -> bool:
    """Return whether an operation on x uses our algorithm for one of these platforms, instead of XLA's.

    FLAX_RESNET_OPS decides; "auto" compares `platforms` with the default backend. With symbolic dimensions
    (`jax.export`) the result is False, because algorithms are chosen by shape. XLA's operations support every
    JAX transformation, including jvp.

    Args:
      x: an operand.
      *platforms: "cpu", "gpu".

    Raises:
      ConfigError: FLAX_RESNET_OPS is not one of `CHOICES`.
    """
    choice = _choice()
    if choice not in CHOICES:
        raise ConfigError(key=SWITCH, value=choice, allowed=CHOICES)
    if not all(isinstance(side, int) for side in x.shape):
        return False
    return choice in platforms or (choice == "auto" and backend()[0] in platforms)


def is_plain() -> bool:
    """Return whether only XLA's own operations are to be used."""
    return _choice() == "plain"


def gpu_form(operation: str, x: Array) -> str:
    """Return the form of an operation on x on GPU: that of FLAX_RESNET_GPU_FORMS, or the default; "" elsewhere.

    Raises:
      ConfigError: FLAX_RESNET_GPU_FORMS names an operation or a form that does not exist.
    """
    given = os.environ.get(FORMS_SWITCH, "")
    chosen = dict(part.partition("=")[::2] for part in given.split(",") if part)
    for name, form in chosen.items():
        if form not in GPU_FORMS.get(name, ()):
            allowed = ", ".join(f"{key}={'|'.join(forms)}" for key, forms in GPU_FORMS.items())
            raise ConfigError(key=FORMS_SWITCH, value=given, allowed=f"a list of {allowed}")
    return chosen.get(operation, GPU_FORMS[operation][0]) if has_own_form(x, "gpu") else ""


def pins_layout() -> bool:
    """Return whether layouts are pinned: the only device is a CPU, or FLAX_RESNET_OPS is "cpu"."""
    return _choice() == "cpu" or backend() == ("cpu", 1)


def compiler_options() -> dict[str, str]:
    """Return the `compiler_options` that `jax.jit` needs on this platform.

    On CPU, the options select XLA's own convolution kernels. The result is empty on other platforms, for "plain"
    and "gpu", if XLA_FLAGS sets the option already, or if XLA does not know the option. Pass options only to the
    outermost `jit`: JAX accepts none for a jitted function that another one traces.
    """
    if _choice() in ("plain", "gpu") or backend()[0] != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in CPU_COMPILER.items() if name not in flags}
    return options if _compiles(tuple(options.items())) else {}


@functools.cache
def _compiles(options: tuple[tuple[str, str], ...]) -> bool:
    """Return whether XLA knows the options. (An unknown flag in XLA_FLAGS would end the process.)"""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def backend() -> tuple[str, int]:
    """Return the default platform and its number of devices.

    Without a backend the result is ("", 0), so that shapes can be traced.
    """
    try:
        return jax.default_backend(), jax.device_count()
    except RuntimeError:
        return "", 0


def pinned(x: Array) -> Array:
    """Pin an array to the default layout, last axis contiguous, if `pins_layout()`; else return it unchanged."""
    return _in_default_layout(x) if pins_layout() else x


def _in_default_layout(x: Array) -> Array:
    # NumPy arrays can be passed outside of jit.
    return with_layout_constraint(jnp.asarray(x), Layout(tuple(range(x.ndim))))


def batch_shards() -> int:
    """Return the number of devices that the batch is split over: the axis `data` of the ambient mesh.

    The ambient mesh is that of `jax.sharding.use_abstract_mesh`, which training sets. Within `jax.shard_map` the
    result is 1, because arrays there are one device's own. The result is 0 if it cannot be known: several devices
    but no ambient mesh, or a mesh with explicit axes or other names.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1 if backend()[1] <= 1 else 0
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if AxisType.Explicit in kinds.values():
        return 0
    if "data" in kinds:
        return mesh.shape["data"] if kinds["data"] == AxisType.Auto else 1
    return 0 if AxisType.Auto in kinds.values() else 1


def pinned_on_gpu(x: Array) -> Array:
    """Pin an array that every device holds whole to the default layout, on GPU; else return it unchanged.

    Gradients of kernels have the layout in which cuDNN computes them. Without the pins, XLA computes the optimizer
    in that layout and copies the new parameters and momenta back. Pins save 48 of 1,194 kernels in a step of
    ResNet-50. A pin makes XLA gather a gradient of which each device needs only a share.
    """
    return _in_default_layout(x) if has_own_form(x, "gpu") else x


def fusion_barrier(x: Array) -> Array:
    """Pin an array, and keep XLA from fusing it into its consumers.

    When XLA fuses sums of shifted arrays, they become scalar loops.
    """
    return lax.optimization_barrier(pinned(x))


def gradient_fusion_barrier(x: Array, platform: str) -> Array:
    """Return x; on this platform, "cpu" or "gpu", keep XLA from fusing its gradient into the gradient's consumers.

    - CPU: otherwise, YNNPACK computes a sum over the gradient together with everything that the gradient is
      computed from. With the slope of a GELU, this costs a tenth of a step: 613 ms instead of 560 (500 maps of
      31x31x24, two cores of an Intel Xeon).
    - GPU: otherwise, the convolution that computes the gradient also adds other gradients of x, and XLA writes them
      to memory first. For that, it pads the gradient of a strided projection with zeros. With the barrier, this
      gradient stays small: a step of ResNet-50 (batch 256, bfloat16) moves 72.3 GB instead of 73.7.
    """
    return _gradient_fusion_barrier(x, platform) if has_own_form(x, platform) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gradient_fusion_barrier(x: Array, platform: str) -> Array:
    return x


def _behind_barrier(platform: str, _: None, dx: Array) -> tuple[Array]:
    return (fusion_barrier_on_cpu(dx) if platform == "cpu" else lax.optimization_barrier(dx),)


_gradient_fusion_barrier.defvjp(lambda x, platform: (x, None), _behind_barrier)


def fusion_barrier_on_cpu(x: Array) -> Array:
    """Apply `fusion_barrier` if the program runs on CPU; return x unchanged on other platforms."""
    return on_cpu(lax.optimization_barrier, lambda x: x, x)


def on_cpu(function: Callable, otherwise: Callable, *arguments: Array) -> Any:
    """Call `function`, with pinned layouts, if the program runs on CPU, and `otherwise` on other platforms.

    The choice is made at lowering: `jax.export` may lower for another platform than the one that traces.
    """
    return lax.platform_dependent(
        *arguments,
        cpu=lambda *xs: jax.tree.map(pinned, function(*map(pinned, xs))),
        default=otherwise,
    )
