"""Write operations on each element: sums, products, comparisons and functions."""

import dataclasses
from typing import Any

import numpy as np

from flax_resnet.inference.export.onnx_graph.graph import AFFINE, Graph
from flax_resnet.inference.export.onnx_graph.values import (
    Call,
    Constant,
    Traced,
    Value,
    Writer,
    as_traced,
    in_layout,
    is_one,
    unsupported,
)

OPERATORS = {
    "max": "Max", "min": "Min", "pow": "Pow", "logistic": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log",
    "erf": "Erf", "abs": "Abs", "neg": "Neg", "sqrt": "Sqrt", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
    "not": "Not", "and": "And", "or": "Or", "lt": "Less", "gt": "Greater", "le": "LessOrEqual",
    "ge": "GreaterOrEqual", "eq": "Equal",
}  # fmt: skip
ARITHMETIC = {"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}


def elementwise(graph: Graph, op: str, operands: list[Value], result: Any) -> Traced:
    """Write an operator that broadcasts its operands, in the layout of the largest tensor."""
    traced = [x for x in operands if isinstance(x, Traced)]
    layout = max(traced, key=lambda x: sum(not is_one(side) for side in x.stored)).layout
    names = []
    for x in operands:
        if isinstance(x, Constant):
            names.append(graph.constant(x.in_layout(layout), "constant"))
        else:
            names.append(in_layout(graph, x, layout).name)
    stored = _broadcast(len(layout), operands)
    name = graph.add(op, names, tuple(stored[axis] for axis in layout), result.dtype)
    return Traced(name, result.shape, stored, layout)


def affine(graph: Graph, x: Traced, scale: Constant, shift: Constant, result: Any) -> Traced:
    """Write ``x * scale + shift``; `simplify` folds it into the operator before it."""
    stored = _broadcast(len(x.layout), [x, scale, shift])
    arrays = [np.asarray(c.in_layout(x.layout), np.float64) for c in (scale, shift)]
    shape = tuple(stored[axis] for axis in x.layout)
    name = graph.add(AFFINE, [x.name], shape, result.dtype, scale=arrays[0], shift=arrays[1])
    return Traced(name, result.shape, stored, x.layout)


def number(value: float, dtype: Any = np.float64) -> Constant:
    """Return a scalar constant."""
    return Constant(np.asarray(value, dtype), ())


def _broadcast(rank: int, operands: list[Any]) -> tuple:
    """Return the lengths of operands that are broadcast against each other, in JAX's order of axes."""
    lengths: list[Any] = [1] * rank
    for x in operands:
        sides = x.stored if isinstance(x, Traced) else x.value.shape or (1,) * rank
        lengths = [b if is_one(a) else a for a, b in zip(lengths, sides, strict=True)]
    return tuple(lengths)


def _plain(op: str) -> Writer:
    return lambda graph, call: elementwise(graph, op, call.operands, call.result)


def _arithmetic(primitive: str) -> Writer:
    """Write a sum, difference, product or quotient; with a floating-point constant, as AFFINE."""

    def write(graph: Graph, call: Call) -> Traced:
        x, y = call.operands
        floating = np.issubdtype(call.result.dtype, np.floating)
        if floating and isinstance(x, Traced) and isinstance(y, Constant):
            value = y.value.astype(np.float64)
            if primitive in ("mul", "div"):
                factor = Constant(1 / value if primitive == "div" else value, y.shape)
                return affine(graph, x, factor, number(0), call.result)
            term = Constant(-value if primitive == "sub" else value, y.shape)
            return affine(graph, x, number(1), term, call.result)
        if floating and isinstance(x, Constant) and isinstance(y, Traced) and primitive != "div":
            if primitive == "mul":
                return affine(graph, y, x, number(0), call.result)
            return affine(graph, y, number(-1 if primitive == "sub" else 1), x, call.result)
        return elementwise(graph, ARITHMETIC[primitive], call.operands, call.result)

    return write


def _max(graph: Graph, call: Call) -> Traced:
    x, y = sorted(call.operands, key=lambda value: isinstance(value, Constant))
    if isinstance(x, Traced) and isinstance(y, Constant) and not np.any(y.value):
        name = graph.add("Relu", [x.name], x.tensor_shape, call.result.dtype)
        return dataclasses.replace(x, name=name)
    return elementwise(graph, "Max", call.operands, call.result)


def _square(graph: Graph, call: Call) -> Traced:
    return elementwise(graph, "Mul", call.operands * 2, call.result)


def _integer_pow(graph: Graph, call: Call) -> Traced:
    if call.parameters["y"] == 2:
        return _square(graph, call)
    exponent = number(call.parameters["y"], call.result.dtype)
    return elementwise(graph, "Pow", [*call.operands, exponent], call.result)


def _rsqrt(graph: Graph, call: Call) -> Traced:
    root = elementwise(graph, "Sqrt", call.operands, call.result)
    return elementwise(graph, "Reciprocal", [root], call.result)


def _log1p(graph: Graph, call: Call) -> Traced:
    # softplus(x) = max(x, 0) + log1p(exp(-|x|)): below 1e-7, the sum with 1 loses only what the maximum hides.
    above = affine(graph, as_traced(call.operands[0]), number(1), number(1), call.result)
    return elementwise(graph, "Log", [above], call.result)


def _expm1(graph: Graph, call: Call) -> Traced:
    power = elementwise(graph, "Exp", call.operands, call.result)
    return affine(graph, power, number(1), number(-1), call.result)


def _not_equal(graph: Graph, call: Call) -> Traced:
    return elementwise(
        graph, "Not", [elementwise(graph, "Equal", call.operands, call.result)], call.result
    )


def _round(graph: Graph, call: Call) -> Traced:
    if int(call.parameters["rounding_method"]) != 1:
        raise unsupported("rounding away from zero")
    return elementwise(graph, "Round", call.operands, call.result)


def _clamp(graph: Graph, call: Call) -> Traced:
    low, x, high = call.operands
    above = elementwise(graph, "Max", [x, low], call.result)
    return elementwise(graph, "Min", [above, high], call.result)


def _select(graph: Graph, call: Call) -> Traced:
    which, *cases = call.operands
    if len(cases) != 2:
        raise unsupported("a choice between more than two arrays")
    return elementwise(graph, "Where", [which, cases[1], cases[0]], call.result)


def _cast(graph: Graph, call: Call) -> Traced:
    x, dtype = as_traced(call.operands[0]), np.dtype(call.result.dtype)
    if graph.dtypes[x.name] == dtype:
        return x
    return dataclasses.replace(x, name=graph.add("Cast", [x.name], x.tensor_shape, dtype, to=dtype))


def _same(graph: Graph, call: Call) -> Traced:
    del graph
    return as_traced(call.operands[0])


WRITERS: dict[str, Writer] = {
    **{name: _plain(op) for name, op in OPERATORS.items()},
    **{name: _arithmetic(name) for name in ARITHMETIC},
    "max": _max,
    "square": _square,
    "integer_pow": _integer_pow,
    "rsqrt": _rsqrt,
    "log1p": _log1p,
    "expm1": _expm1,
    "ne": _not_equal,
    "round": _round,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _cast,
    "copy": _same,
    "stop_gradient": _same,
}
