"""Trace a program and write its primitives into a graph."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

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
from flax_resnet.inference.export.program import Program, exact
from flax_resnet.models.layers.attention import ChannelConv
from flax_resnet.models.layers.normalization import GROUPS, GroupNorm

# Normalisation of groups, as one operator of ONNX instead of the sums and products that it is traced to.
group_norm_p = core.Primitive("group_norm")
group_norm_p.def_abstract_eval(lambda x, **_: x)
# Primitives that call a traced function; its own primitives are written in their place.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


def traced_graph(program: Program) -> tuple[Graph, str]:
    """Return the graph of a program, from `preprocessing.NAME` to the logits, and the name of the logits.

    Raises:
      ConfigError: the program has a primitive that has no entry in `WRITERS`.
    """
    shapes, image = jax.eval_shape(lambda: program.variables), program.input()
    with exact(), nn.intercept_methods(_whole_layers):
        traced = jax.make_jaxpr(program.logits)(shapes, image)
    graph = Graph()
    images = add_input(graph, program, image)
    arrays = [*traced.consts, *jax.tree.leaves(program.variables)]
    values: list[Value] = [Constant(np.asarray(array), np.shape(array)) for array in arrays]
    count = len(traced.consts)
    (logits,) = _run(graph, traced.jaxpr, values[:count], [*values[count:], images])
    return graph, as_tensor(graph, logits, (0, 1)).name


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


def _run(graph: Graph, jaxpr: Any, constants: list[Value], arguments: list[Value]) -> list[Value]:
    """Write the equations of a program into the graph, and return its results."""
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return Constant(np.asarray(atom.val), np.shape(atom.val))
        return values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        with _scope(graph, equation):
            results = _written(graph, equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _written(graph: Graph, equation: Any, operands: list[Value]) -> list[Value]:
    name, parameters = equation.primitive.name, equation.params
    if name in CALLS:
        inner = parameters.get("call_jaxpr", parameters.get("jaxpr"))
        if not isinstance(inner, core.ClosedJaxpr):  # of jax.checkpoint
            return _run(graph, inner, [], operands)
        constants: list[Value] = [Constant(np.asarray(c), np.shape(c)) for c in inner.consts]
        return _run(graph, inner.jaxpr, constants, operands)
    results = [variable.aval for variable in equation.outvars]
    if all(isinstance(x, Constant) for x in operands):
        return _computed(equation, operands, results)
    if name not in WRITERS:
        raise unsupported(f"the operation {name!r}, of {graph.scope or 'the network'}")
    return [WRITERS[name](graph, Call(operands, parameters, results[0]))]


def _computed(equation: Any, operands: list[Any], results: list[Any]) -> list[Value]:
    """Compute the results of constants. Broadcast axes stay short, since the batch may be symbolic."""
    name, shape = equation.primitive.name, results[0].shape
    if name == "broadcast_in_dim":
        (x,) = operands
        lengths = [1] * len(shape)
        for axis, side in zip(equation.params["broadcast_dimensions"], x.value.shape, strict=False):
            lengths[axis] = side
        return [Constant(x.value.reshape(lengths if x.value.ndim else ()), shape)]
    is_elementwise = name in elementwise.WRITERS
    arrays = [x.value if is_elementwise else x.full() for x in operands]
    if is_elementwise:
        arrays = [*np.broadcast_arrays(*arrays)]
    with jax.ensure_compile_time_eval():
        computed = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    many = computed if equation.primitive.multiple_results else [computed]
    return [Constant(np.asarray(y), x.shape) for y, x in zip(many, results, strict=True)]


@contextlib.contextmanager
def _scope(graph: Graph, equation: Any) -> Iterator[None]:
    """Name nodes and constants by the linen module that computes the equation."""
    outer, stack = graph.scope, str(equation.source_info.name_stack)
    # "ResNet/layer1_0/layer1_0._strided/conv1": linen also names the methods, with a dot.
    names = [part for part in stack.split("/")[1:] if "." not in part and "(" not in part]
    graph.scope = "/".join(names) or outer
    try:
        yield
    finally:
        graph.scope = outer
