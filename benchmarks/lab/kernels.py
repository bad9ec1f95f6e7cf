"""Analyse a compiled program: its kernels, the bytes that they move, convolutions, collectives.

A program for GPUs is one scheduled computation. Each instruction is a kernel, except bookkeeping (`NO_KERNEL`). The
body of a loop counts once per iteration. Each kernel is assumed to read all its operands and write all its results
once. If it reads or writes only slices of an array, only the slices count.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.lab.hlo import Array, Computation, Instruction, Program, schedule

NO_KERNEL = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier",
    "partition-id", "replica-id", "add-dependency",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
KINDS = (
    "convolution", "matrix product", "max-pool", "reduction", "elementwise", "optimizer",
    "copy of activations", "copy of weights", "collective",
)  # fmt: skip
_ELEMENTS = {"convert", "bitcast", "copy", "transpose", "parameter", "reshape", "tuple"}


class Kernel(NamedTuple):
    """One kernel, or a collective.

    Attributes:
      instruction: its instruction in the program.
      kind: one of `KINDS`.
      times: number of runs per step.
      bytes: bytes moved per run.
      operands: the arrays that it reads.
    """

    instruction: Instruction
    kind: str
    times: int
    bytes: int
    operands: tuple[Array, ...]


def kernels(program: Program) -> list[Kernel]:
    """Return the kernels of a step, in the order of execution."""
    parameters = {
        _sides(one.results[0])
        for one in program.computations[program.entry].values()
        if one.opcode == "parameter" and one.results and one.results[0].dtype == "f32"
    }
    results = []
    for computation, one, times in schedule(program):
        if one.opcode in NO_KERNEL:
            continue
        called = program.computations.get(one.attribute(r"calls=%([^\s,]+)"), {})
        operands = tuple(
            array
            for name in one.operands
            for array in (computation[name].results if name in computation else ())
        )
        kind = _kind(one, called, operands, parameters)
        results.append(Kernel(one, kind, times, _moved(one, called, computation), operands))
    return results


def _sides(array: Array) -> tuple[int, ...]:
    """Return the sorted sizes of the axes, without 1s. Transposing an array does not change them."""
    return tuple(sorted(side for side in array.shape if side != 1))


def _kind(
    one: Instruction, called: Computation, operands: tuple[Array, ...], parameters: set
) -> str:
    """Return the kind of a kernel, one of `KINDS`. It depends on the computation, not on the name."""
    inside = {part.opcode for part in called.values()}
    target = one.attribute(r'custom_call_target="([^"]*)"')
    if one.opcode.removesuffix("-start") in COLLECTIVES:
        return "collective"
    if is_convolution(one) or "convolution" in inside:
        return "convolution"
    if "gemm" in target or "matmul" in target or one.opcode == "dot" or "dot" in inside:
        return "matrix product"
    if {"reduce-window", "select-and-scatter", "scatter"} & (inside | {one.opcode}):
        return "max-pool"
    arrays = [array for array in (*one.results, *operands) if len(array.shape) > 1]
    largest = max(arrays, key=lambda array: array.bytes, default=None)
    of_weights = largest is None or _sides(largest) in parameters
    if one.opcode in ("copy", "copy-start", "transpose") or (
        inside and inside <= _ELEMENTS and {"copy", "transpose"} & inside
    ):
        return "copy of weights" if of_weights else "copy of activations"
    if "reduce" in inside or one.opcode == "reduce":
        return "reduction"
    if of_weights and any(array.dtype == "f32" for array in one.results):
        return "optimizer"
    return "copy of weights" if of_weights and inside <= _ELEMENTS else "elementwise"


def is_convolution(one: Instruction) -> bool:
    """Return whether an instruction is a convolution, by cuDNN or XLA's own."""
    target = one.attribute(r'custom_call_target="([^"]*)"')
    return one.opcode == "convolution" or target.startswith("__cudnn$conv")


def _moved(one: Instruction, called: Computation, computation: Computation) -> int:
    """Return the bytes that a kernel reads and writes."""
    total = 0
    if one.opcode.endswith("-start"):  # its result contains its operands
        return 2 * sum(array.bytes for name in one.operands for array in computation[name].results)
    parameters = {
        int(part.attribute(r"^(\d+)")): part
        for part in called.values()
        if part.opcode == "parameter"
    }
    if one.opcode in ("slice", "dynamic-slice"):
        return 2 * one.results[0].bytes
    for position, name in enumerate(one.operands):
        size = sum(array.bytes for array in computation[name].results)
        total += _read(parameters[position], called, size) if position in parameters else size
    root = next((part for part in called.values() if part.is_root), one)
    roots = [called[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for part in roots:
        if part.opcode == "dynamic-update-slice":
            scope = called or computation
            total += sum(array.bytes for array in scope[part.operands[1]].results)
        else:
            total += sum(array.bytes for array in part.results)
    return total


def _read(parameter: Instruction, called: Computation, whole: int) -> int:
    """Return the bytes of an operand that a fused computation reads."""
    total = 0
    for user in called.values():
        if parameter.name not in user.operands:
            continue
        first = user.operands[0] == parameter.name
        if user.opcode == "bitcast":
            total += _read(user, called, whole)
        elif user.opcode in ("slice", "dynamic-slice") and first:
            total += user.results[0].bytes
        elif user.opcode != "dynamic-update-slice" or not first:
            return whole
    return min(total, whole)


class Convolution(NamedTuple):
    """One convolution.

    Attributes:
      target: library function, such as `__cudnn$convForward`; "" for XLA's own loop.
      dtypes: dtypes of the operands and of the result.
      is_nhwc: whether the channels of activations and the input channels of kernels are contiguous in memory.
      times: number of runs per step.
    """

    target: str
    dtypes: frozenset[str]
    is_nhwc: bool
    times: int


def convolutions(program: Program) -> list[Convolution]:
    """Return all convolutions, including those within fusions."""
    results = []
    for computation, one, times in schedule(program):
        called = program.computations.get(one.attribute(r"calls=%([^\s,]+)"), {})
        for scope in (called, {one.name: one}):
            for part in scope.values():
                if is_convolution(part):
                    results.append(_convolution(part, scope | computation, times))
    return results


def _convolution(one: Instruction, scope: Computation, times: int) -> Convolution:
    operands = [array for name in one.operands[:2] for array in scope[name].results[:1]]
    arrays = [*operands, one.results[0]]
    image, kernel, result = re.split(r"_|->", one.attribute(r"dim_labels=([\w?>-]+)"))
    backward_filter = "BackwardFilter" in one.attributes
    labels = (image, result, kernel) if backward_filter else (image, kernel, result)
    # The axis that is contiguous in memory. With NHWC: f, the channels of an activation; i, the inputs of a kernel.
    last = {
        label[array.layout[0] if array.layout else -1]
        for label, array in zip(labels, arrays, strict=True)
    }
    return Convolution(
        target=one.attribute(r'custom_call_target="([^"]*)"'),
        dtypes=frozenset(array.dtype for array in arrays),
        is_nhwc=last <= {"f", "i"},
        times=times,
    )


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      opcode: "all-reduce", ...
      dtypes: dtypes of the moved arrays.
      bytes: size of the operands.
      beside: bytes moved by the kernels that are scheduled while it runs; 0 if it is synchronous.
      times: number of runs per step.
    """

    opcode: str
    dtypes: frozenset[str]
    bytes: int
    beside: int
    times: int

    @property
    def exposed(self) -> bool:
        """Whether the kernels scheduled while it runs move fewer bytes than it does, too few to hide it."""
        return self.beside < self.bytes


def collectives(program: Program) -> list[Collective]:
    """Return all collectives."""
    moved = {
        kernel.instruction.name: kernel.bytes
        for kernel in kernels(program)
        if kernel.kind != "collective"
    }
    results = []
    for computation, one, times in schedule(program):
        opcode = one.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            continue
        arrays = [array for name in one.operands for array in computation[name].results]
        results.append(
            Collective(
                opcode,
                frozenset(array.dtype for array in arrays),
                sum(array.bytes for array in arrays),
                sum(moved.get(name, 0) for name in _beside(computation, one)),
                times,
            )
        )
    return results


def _beside(computation: Computation, one: Instruction) -> Iterator[str]:
    """Yield the names of the instructions between the start and the end of a collective."""
    if not one.opcode.endswith("-start") or '"is_sync":true' in one.attributes:
        return
    after = iter(computation.values())
    for other in after:
        if other.name == one.name:
            break
    for other in after:
        if other.opcode.endswith("-done") and one.name in other.operands:
            return
        yield other.name
