"""Summarize a network by layer: outputs, parameters, multiply-adds. Nothing is allocated or compiled."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flax_resnet.errors import ConfigError
from flax_resnet.models.network import Network
from flax_resnet.models.registry import create_model

MIB = 2**20
LARGEST = 2**16  # larger numbers are probably typing errors


class Layer(NamedTuple):
    """One layer with parameters, or several layers under a common name.

    Attributes:
      name: path of the module, such as layer1_0/conv1.
      kind: kind of the layer, such as "Conv 3x3/2" or "BatchNorm".
      output_shape: [N, H, W, C] or [N, C].
      parameters: number of parameters, without running statistics.
      macs: multiply-adds per image, in convolutions and linear layers.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The summary of a network; sizes are in bytes.

    Attributes:
      name: the network's name.
      input_shape: [N, H, W, C].
      dtype: compute dtype.
      layers: the layers, in the order of computation.
      parameters: total number of parameters, all trainable.
      running_statistics: total number of values in `batch_stats`, measured for batch normalisation or whitening;
        they have no gradient.
      macs: multiply-adds per image, in convolutions and linear layers (torchvision's convention).
      input_size: size of the batch in float32.
      activation_size: size of the layers' outputs, stored for the backward pass, and of their gradients, in the
        compute dtype. (torchsummary also counts the outputs of ReLUs, pools and blocks.)
      parameter_size: size of the parameters, at least float32.
    """

    name: str
    input_shape: tuple[int, ...]
    dtype: str
    layers: tuple[Layer, ...]
    parameters: int
    running_statistics: int
    macs: int
    input_size: int
    activation_size: int
    parameter_size: int

    @property
    def total_size(self) -> int:
        """The minimum memory of a training step without optimizer state, in bytes."""
        return self.input_size + self.activation_size + self.parameter_size


def summarize(name: str, image_size: int = 0, batch_size: int = 1, **options: Any) -> Summary:
    """Summarize a network from shapes alone.

    Args:
      name: a name from `list_models()`.
      image_size: height and width of the images; 0 for the size that the network is made for.
      batch_size: images in the batch, for the sizes.
      **options: options of `create_model`, except scan_blocks.

    Raises:
      ConfigError: the network or an option is unknown, or the images are too small for it.
    """
    if options.get("scan_blocks"):
        raise ConfigError(
            "a summary lists blocks one by one",
            key="model.scan_blocks",
            value=options["scan_blocks"],
            cure="leave the option out",
        )
    for key, value, least in (("image_size", image_size, 0), ("batch_size", batch_size, 1)):
        if type(value) is not int or not least <= value <= LARGEST:
            raise ConfigError(
                key=key, value=value, allowed=f"a whole number from {least} to {LARGEST:,}"
            )
    return summarize_model(create_model(name, **options), name, image_size, batch_size)


def summarize_model(model: Network, name: str, image_size: int = 0, batch_size: int = 1) -> Summary:
    """Summarize a network whose blocks are not scanned; the arguments and errors are those of `summarize`."""
    size = image_size or model.image_size
    layers: list[Layer] = []

    def record(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and module.path:
            own = {
                k: v for k, v in module.variables.get("params", {}).items() if hasattr(v, "size")
            }
            if own:
                layers.append(_layer(module, output, own))
        return output

    shape = (batch_size, size, size, model.in_channels)
    # Without 64-bit mode, JAX turns float64 into float32 and warns for every layer.
    wide = jax.enable_x64(True) if model.dtype.itemsize == 8 else contextlib.nullcontext()
    with wide, nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
    params = jax.tree.leaves(variables["params"])
    numbers = sum(math.prod(layer.output_shape) for layer in layers)
    return Summary(
        name=name,
        input_shape=shape,
        dtype=model.dtype.name,
        layers=tuple(layers),
        parameters=sum(leaf.size for leaf in params),
        running_statistics=sum(
            leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {}))
        ),
        macs=sum(layer.macs for layer in layers),
        input_size=math.prod(shape) * 4,
        activation_size=2 * numbers * model.dtype.itemsize,
        parameter_size=sum(leaf.size * leaf.dtype.itemsize for leaf in params),
    )


def _layer(module: Any, output: Any, own: dict[str, Any]) -> Layer:
    """Describe one call of a module; each output value costs one multiply-add per tap of its kernel."""
    kind, macs = type(module).__name__, 0
    measured = module.variables.get("batch_stats", {})  # holds the kernel of a whitening layer
    if (kernel := own.get("kernel", measured.get("kernel"))) is not None:
        taps = math.prod(kernel.shape[:-1]) if kernel.ndim > 1 else kernel.size
        macs = math.prod(output.shape[1:]) * taps
        if kernel.ndim == 4:
            kind += f" {kernel.shape[0]}x{kernel.shape[1]}"
            kind += f"/{module.stride}" if module.stride > 1 else ""
            kind += f", {module.groups} groups" if module.groups > 1 else ""
            kind += f", dilation {module.dilation}" if module.dilation > 1 else ""
    return Layer(
        "/".join(module.path), kind, output.shape, sum(leaf.size for leaf in own.values()), macs
    )


def collapsed(layers: Iterable[Layer], depth: int) -> list[Layer]:
    """Merge layers whose paths start with the same `depth` names.

    The output shape is the shape of the last layer that has as many axes as the first.
    """
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault("/".join(layer.name.split("/")[:depth]), []).append(layer)
    return [
        Layer(
            name,
            group[0].kind if len(group) == 1 else f"{len(group)} layers",
            next(x for x in reversed(group) if len(x.output_shape) == len(group[0].output_shape))
            .output_shape,
            sum(layer.parameters for layer in group),
            sum(layer.macs for layer in group),
        )
        for name, group in groups.items()
    ]  # fmt: skip


def totals(summary: Summary) -> dict[str, Any]:
    """Return the totals by name, with sizes in MiB."""
    return {
        "model": summary.name,
        "input_shape": list(summary.input_shape),
        "dtype": summary.dtype,
        "parameters": summary.parameters,
        "trainable": summary.parameters,
        "running_statistics": summary.running_statistics,
        "gmacs": round(summary.macs / 1e9, 6),
        "input_mib": round(summary.input_size / MIB, 3),
        "forward_backward_mib": round(summary.activation_size / MIB, 3),
        "parameters_mib": round(summary.parameter_size / MIB, 3),
        "total_mib": round(summary.total_size / MIB, 3),
    }
