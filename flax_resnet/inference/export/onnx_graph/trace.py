"""Trace a program and write its primitives into a graph."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from flax_resnet.inference.export.onnx_graph.graph import Graph
from flax_resnet.inference.export.onnx_graph.operators import ELEMENTWISE, OPERATORS, tensor
from flax_resnet.inference.export.onnx_graph.values import (
    Constant,
    Traced,
    Value,
    identity,
    unsupported,
)
from flax_resnet.inference.export.program import Program, exact
from flax_resnet.models.layers.normalization import GROUPS, GroupNorm

# Normalisation of groups, as one operator of ONNX instead of the sums and products that it is traced to.
group_norm_p = core.Primitive("group_norm")
group_norm_p.def_abstract_eval(lambda x, **_: x)


def traced_graph(program: Program, *, channels_first: bool) -> tuple[Graph, str, str]:
    """Return the graph of a program, and the names of its input and of its logits.

    Args:
      program: the program.
      channels_first: whether the input is NCHW; otherwise it is NHWC.

    Raises:
      ConfigError: the program has a primitive that has no entry in `OPERATORS`.
    """
    shapes = jax.eval_shape(lambda: program.variables)
    with exact(), nn.intercept_methods(_whole_layers):
        traced = jax.make_jaxpr(program.logits)(shapes, program.input())
    graph = Graph()
    leaves = jax.tree.leaves(program.variables)
    weights: list[Value] = [Constant(np.asarray(leaf), leaf.shape) for leaf in leaves]
    image = program.input()
    layout = (0, 3, 1, 2) if channels_first else identity(4)
    shape = tuple(image.shape[axis] for axis in layout)
    graph.shapes["images"], graph.dtypes["images"] = shape, np.dtype(image.dtype)
    images = Traced("images", image.shape, image.shape, layout)
    constants: list[Value] = [Constant(np.asarray(leaf), np.shape(leaf)) for leaf in traced.consts]
    (logits,) = _run(graph, traced.jaxpr, constants, [*weights, images])
    return graph, "images", tensor(graph, logits, (0, 1)).name


def _whole_layers(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """Trace a layer that ONNX has an operator for as one primitive."""
    module = context.module
    if not isinstance(module, GroupNorm) or context.method_name != "__call__":
        return call(*args, **kwargs)
    (x,) = args
    scale, bias = (
        module.variables["params"][name].reshape(1, 1, 1, -1) for name in ("scale", "bias")
    )
    groups = math.gcd(GROUPS, x.shape[-1])
    normed = group_norm_p.bind(x, groups=groups, epsilon=module.epsilon)
    y = normed * scale + bias
    return module.act(y) if module.act else y


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
    name = equation.primitive.name
    inner = next(
        (equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params), None
    )
    if inner is not None and name not in ("scan", "while", "cond"):
        closed = hasattr(inner, "consts")
        constants: list[Value] = [Constant(np.asarray(c), np.shape(c)) for c in inner.consts] if closed else []
        return _run(graph, inner.jaxpr if closed else inner, constants, operands)
    outputs = [variable.aval for variable in equation.outvars]
    if all(isinstance(x, Constant) for x in operands):
        return _computed(equation, operands, outputs)
    if name not in OPERATORS:
        raise unsupported(f"the operation {name!r}, of {graph.scope or 'the network'}")
    return [OPERATORS[name](graph, operands, equation.params, outputs[0])]


def _computed(equation: Any, operands: list[Any], outputs: list[Any]) -> list[Value]:
    """Compute the results of constants. Broadcast axes stay short, since the batch may be symbolic."""
    name, shape = equation.primitive.name, outputs[0].shape
    if name == "broadcast_in_dim":
        (x,) = operands
        lengths = [1] * len(shape)
        for axis, side in zip(equation.params["broadcast_dimensions"], x.value.shape, strict=False):
            lengths[axis] = side
        return [Constant(x.value.reshape(lengths if x.value.ndim else ()), shape)]
    with jax.ensure_compile_time_eval():
        if name in ELEMENTWISE or name in ("rsqrt", "square", "integer_pow", "convert_element_type"):
            short = np.broadcast_arrays(*(x.value for x in operands))
            results = equation.primitive.bind(*map(jnp.asarray, short), **equation.params)
            return [Constant(np.asarray(results), shape)]
        full = [jnp.asarray(x.full()) for x in operands]
        results = equation.primitive.bind(*full, **equation.params)
        many = results if equation.primitive.multiple_results else [results]
        return [Constant(np.asarray(y), a.shape) for y, a in zip(many, outputs, strict=True)]


@contextlib.contextmanager
def _scope(graph: Graph, equation: Any) -> Iterator[None]:
    """Name nodes and constants by the linen module that computes the equation."""
    outer, stack = graph.scope, str(equation.source_info.name_stack)
    names = [part for part in stack.split("/") if part and "(" not in part][1:]
    graph.scope = "/".join(names) or outer
    try:
        yield
    finally:
        graph.scope = outer
