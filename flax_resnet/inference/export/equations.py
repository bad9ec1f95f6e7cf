"""A program as a flat list of primitives: what depends on the images is listed, and all else is computed."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.extend import core

from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.program import Program, exact

INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters of primitives that only call a program
LOOPS = ("scan", "while", "cond")
Key = TypeVar("Key")
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive of JAX.

    Attributes:
      primitive: the primitive.
      params: its parameters.
      operands: numbers of the values that it takes.
      results: numbers of the values that it returns.
      shapes: the shapes and dtypes of its operands.
      outputs: the shapes and dtypes of its results.
      scope: name of the linen module that computes it, such as "layer1_0/conv1".
    """

    primitive: Any
    params: dict[str, Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    shapes: tuple[Any, ...]
    outputs: tuple[Any, ...]
    scope: str


@dataclasses.dataclass(frozen=True)
class Equations:
    """A program that was traced.

    Attributes:
      images: the shape and dtype of the images; its batch may be symbolic.
      input: number of the images.
      output: number of the logits.
      logits: their shape [N, K] and dtype.
      constants: {number: array} of all values that do not depend on the images, such as standardised kernels.
      steps: what is computed of the images, in order.
    """

    images: jax.ShapeDtypeStruct
    input: int
    output: int
    logits: Any
    constants: dict[int, np.ndarray]
    steps: tuple[Equation, ...]

    def run(
        self, images: Any, constants: dict[int, Any], apply: Callable[[Equation, list], Sequence]
    ) -> Any:
        """Return the logits.

        Args:
          images: the images.
          constants: `self.constants`, maybe as other objects.
          apply: (equation, operands) -> results.
        """
        values = {**constants, self.input: images}
        last = {number: place for place, step in enumerate(self.steps) for number in step.operands}
        for place, step in enumerate(self.steps):
            results = apply(step, [values[number] for number in step.operands])
            values.update(zip(step.results, results, strict=True))
            for number in {*step.operands} - {self.output}:
                if last[number] == place:
                    del values[number]  # weights may be gigabytes
        return values[self.output]


def equations_of(
    program: Program,
    image: jax.ShapeDtypeStruct | None = None,
    layers: Callable[..., Any] | None = None,
) -> Equations:
    """Trace the logits of a program. Formats add the softmax as their own operation.

    Args:
      program: the program.
      image: shape and dtype of the images; None for `program.input()`.
      layers: replaces the methods of linen modules while tracing (see `flax.linen.intercept_methods`).
    """
    image = program.input() if image is None else image
    intercepted = nn.intercept_methods(layers) if layers else contextlib.nullcontext()
    with exact():
        with intercepted:
            shapes = jax.eval_shape(lambda: program.variables)
            traced = jax.make_jaxpr(program.logits)(shapes, image)
        known: dict[int, Any] = {}
        steps: list[Equation] = []
        arrays = [*traced.consts, *jax.tree.leaves(program.variables)]
        numbers = [_add(known, array) for array in arrays]
        count, images = len(traced.consts), _add(known, None)
        (output,) = _flatten(
            traced.jaxpr, numbers[:count], [*numbers[count:], images], known, steps
        )
        del known[images]
        computed, rest = _split(steps, set(known))
        needed = {n for step in rest for n in step.operands} | {output}
        needed -= {n for step in rest for n in step.results} | {images}
        values = jax.device_get(jax.jit(lambda arrays: _computed(computed, arrays, needed))(known))
    constants = {number: np.asarray(value) for number, value in values.items()}
    return Equations(image, images, output, traced.out_avals[0], constants, tuple(rest))


def as_float16(constants: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Return the constants with the kernels (arrays of several axes) in float16.

    Biases stay float32, as do kernels of less than a thousandth of all weights: they save nothing, and the stem's
    is the one whose rounding matters most (two thirds of the difference of a BiT-50x1).

    Raises:
      ConfigError: a weight is too large for float16.
    """
    total = sum(array.size for array in constants.values())

    def narrow(array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float32 or array.ndim < 2 or 1000 * array.size < total:
            return array
        largest = float(np.abs(array).max(initial=0))
        if largest > LARGEST_FLOAT16:
            raise ConfigError(
                f"a weight is {largest:g}, and the largest number of float16 is 65504",
                key="precision",
                value="float16",
                cure="export in float32",
            )
        return array.astype(np.float16)

    return {key: narrow(array) for key, array in constants.items()}


def _add(known: dict[int, Any], array: Any) -> int:
    number = len(known)
    known[number] = array
    return number


def _flatten(
    jaxpr: Any,
    constants: Sequence[int],
    arguments: Sequence[int],
    known: dict[int, Any],
    steps: list[Equation],
    scope: str = "",
) -> list[int]:
    """Append the equations of a program, with those of the programs that it calls; return its results' numbers.

    Literals are added to `known`. Results get numbers from there too, and their entries are removed.
    """
    numbers: dict[Any, int] = dict(zip(jaxpr.constvars, constants, strict=True))
    numbers.update(zip(jaxpr.invars, arguments, strict=True))

    def number_of(atom: Any) -> int:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return _add(known, np.asarray(atom.val, aval.dtype))
        return numbers[atom]

    for equation in jaxpr.eqns:
        operands = [number_of(atom) for atom in equation.invars]
        inner = _inner(equation)
        if inner is not None:
            consts = [_add(known, array) for array in inner.consts]
            results = _flatten(inner.jaxpr, consts, operands, known, steps, _scope(equation, scope))
        else:
            results = [_add(known, None) for _ in equation.outvars]
            shapes, outputs = (
                tuple(atom.aval for atom in atoms) for atoms in (equation.invars, equation.outvars)
            )
            steps.append(
                Equation(
                    equation.primitive,
                    equation.params,
                    (*operands,),
                    (*results,),
                    shapes,
                    outputs,
                    _scope(equation, scope),
                )
            )
        numbers.update(zip(equation.outvars, results, strict=True))
    return [number_of(atom) for atom in jaxpr.outvars]


def _scope(equation: Any, outer: str) -> str:
    """Return the name of the linen module that computes an equation; within a jitted function, that of its call."""
    # "ResNet/layer1_0/layer1_0._strided/conv1": linen also names the methods, with a dot.
    parts = str(equation.source_info.name_stack).split("/")[1:]
    return "/".join(part for part in parts if "." not in part and "(" not in part) or outer


def _inner(equation: Any) -> Any:
    """Return the program that an equation calls, or None."""
    if equation.primitive.name in LOOPS:
        return None
    found = next((equation.params[key] for key in INNER if key in equation.params), None)
    if found is None or hasattr(found, "consts"):
        return found
    return core.ClosedJaxpr(found, ())


def _split(steps: Sequence[Equation], constant: set[int]) -> tuple[list[Equation], list[Equation]]:
    """Split equations into those of constants only, and those that depend on the images or on a symbolic batch."""
    computed, rest = [], []
    results = {number for step in steps for number in step.results}
    constant = constant - results
    for step in steps:
        sides = [side for shape in step.outputs for side in shape.shape]
        if constant.issuperset(step.operands) and all(isinstance(side, int) for side in sides):
            computed.append(step)
            constant |= set(step.results)
        else:
            rest.append(step)
    return computed, rest


def _computed(steps: Sequence[Equation], known: dict[int, Any], needed: set[int]) -> dict[int, Any]:
    values = {number: array for number, array in known.items() if array is not None}
    for step in steps:
        values.update(bound(step, [values[number] for number in step.operands]))
    return {number: values[number] for number in needed}


def bound(step: Equation, operands: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Compute an equation by JAX; yield the numbers and values of its results."""
    results = step.primitive.bind(*operands, **step.params)
    many = results if step.primitive.multiple_results else [results]
    return zip(step.results, many, strict=True)
