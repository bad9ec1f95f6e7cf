"""Trace a program and write its primitives into a graph."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax
from jax.extend import core

from flax_resnet.inference.export.equations import Equation, bound, equations_of
from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.operators import WRITERS, elementwise
from flax_resnet.inference.export.onnx_graph.preprocessing import add_input
from flax_resnet.inference.export.onnx_graph.values import (
    Call,
    Constant,
    Value,
    as_tensor,
    unsupported,
)
from flax_resnet.inference.export.program import BATCH, Program
from flax_resnet.models.layers.attention import ChannelConv
from flax_resnet.models.layers.normalization import GROUPS, GroupNorm

# Normalisation of groups, as one operator of ONNX instead of the sums and products that it is traced to.
group_norm_p = core.Primitive("group_norm")
group_norm_p.def_abstract_eval(lambda x, **_: x)


def traced_graph(program: Program) -> tuple[Graph, str]:
    """Return the graph of a program, from `preprocessing.NAME` to the logits, and the name of the logits.

    The batch is symbolic for every signature: else constants would be broadcast over it.

    Raises:
      ConfigError: the program has a primitive that has no entry in `WRITERS`.
    """
    image = program.input(jax_export.symbolic_shape(BATCH)[0])
    equations = equations_of(program, image, _whole_layers)
    graph = Graph()
    images = add_input(graph, program, image)
    constants = {n: Constant(array, array.shape) for n, array in equations.constants.items()}
    equations.constants.clear()  # each is freed as soon as it is written

    def write(step: Equation, operands: list[Value]) -> list[Value]:
        graph.scope = step.scope
        if all(isinstance(x, Constant) for x in operands):
            return [_computed(step, operands)]
        name = step.primitive.name
        if name not in WRITERS:
            raise unsupported(f"the operation {name!r}, of {graph.scope or 'the network'}")
        return [WRITERS[name](graph, Call(operands, step.params, step.outputs[0]))]

    logits = equations.run(images, constants, write)
    return graph, as_tensor(graph, logits, (0, 1)).name


def _computed(step: Equation, operands: list[Any]) -> Constant:
    """Compute the result of constants that is broadcast over the symbolic batch. The broadcast axes stay short."""
    name, shape = step.primitive.name, step.outputs[0].shape
    if name == "broadcast_in_dim":
        (x,) = operands
        lengths = [1] * len(shape)
        for axis, side in zip(step.params["broadcast_dimensions"], x.value.shape, strict=False):
            lengths[axis] = side
        return Constant(x.value.reshape(lengths if x.value.ndim else ()), shape)
    if name not in elementwise.WRITERS:
        raise unsupported(f"the operation {name!r} on a constant of the size of the batch")
    arrays = np.broadcast_arrays(*(x.value for x in operands))
    ((_, value),) = bound(step, [jnp.asarray(array) for array in arrays])
    return Constant(np.asarray(value), shape)


def _whole_layers(
    call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    """Trace a layer that ONNX has an operator for as one primitive."""
    module = context.module
    write = LAYERS.get(type(module))
    if write is None or context.method_name != "__call__":
        return call(*args, **kwargs)
    return write(module, module.variables["params"], args[0])


def _group_norm(module: Any, params: Any, x: jax.Array) -> jax.Array:
    scale, bias = (params[name].reshape(1, 1, 1, -1) for name in ("scale", "bias"))
    groups = math.gcd(GROUPS, x.shape[-1])
    y = group_norm_p.bind(x, groups=groups, epsilon=module.epsilon) * scale + bias
    return module.act(y) if module.act else y


def _channel_conv(module: Any, params: Any, x: jax.Array) -> jax.Array:
    half = module.size // 2
    y = lax.conv_general_dilated(
        x[..., None], params["kernel"][:, None, None], (1,), [(half, half)],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip
    return lax.squeeze(y, (2,))


LAYERS: dict[type, Callable[[Any, Any, jax.Array], jax.Array]] = {
    GroupNorm: _group_norm,
    ChannelConv: _channel_conv,
}
