"""Parse the text of a compiled program: its instructions and their arrays, in the order of execution.

The text is XLA's program for GPUs after optimisation (`compiled.as_text()`).
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)[^}]*\})?")


class Array(NamedTuple):
    """The type of an array in the program.

    Attributes:
      dtype: XLA's name, such as "bf16".
      shape: sizes of the axes.
      layout: axes from the smallest stride to the largest; () if the text gives none.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 0)


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: name of the result.
      opcode: "fusion", "custom-call", ...
      results: the array that it returns, or the elements of the tuple that it returns.
      operands: names of the operands.
      attributes: the text after the operands.
      is_root: whether it is the ROOT instruction, whose result the computation returns.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str:
        """Search the attributes for a regex, and return its first group; "" without a match."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """The computations of a program by name, and the name of its entry computation."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Parse the text of a program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current[match[2]] = _instruction(*match.groups())
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return Program(computations, entry)


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
    # The type before the opcode may contain parentheses too, for a tuple or for the tiles of a layout: T(8,128).
    # But only an opcode is a word between a space and a parenthesis.
    match = _OPCODE.search(" " + rest)
    assert match is not None, name
    start = match.end() - 1
    depth, end = 1, start
    while depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    inside = rest[start : end - 1]
    return Instruction(
        name=name,
        opcode=match[1],
        results=_arrays(rest[: match.start()]),
        operands=tuple(re.findall(r"%([^\s,)]+)", inside)),
        attributes=("" if "%" in inside else inside) + rest[end:],
        is_root=bool(root),
    )


def _arrays(text: str) -> tuple[Array, ...]:
    def numbers(joined: str | None) -> tuple[int, ...]:
        return tuple(int(number) for number in (joined or "").split(",") if number)

    return tuple(
        Array(dtype, numbers(shape), numbers(layout))
        for dtype, shape, layout in _ARRAY.findall(text)
    )


def schedule(program: Program) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yield (computation, instruction, number of runs) in the order of execution, loop bodies included."""

    def walk(name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = program.computations[name]
        for one in computation.values():
            if one.opcode == "while":
                count = one.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
                yield from walk(one.attribute(r"body=%([^\s,]+)"), times * int(count or 1))
            elif one.opcode in ("call", "async-start"):
                yield from walk(one.attribute(r"(?:to_apply|calls)=%([^\s,]+)"), times)
            elif one.opcode == "conditional":  # count only the longest branch
                branches = re.findall(
                    r"%([^\s,}]+)", one.attribute(r"branch_computations=\{(.*?)\}")
                )
                yield from max((list(walk(branch, times)) for branch in branches), key=len)
            elif not one.opcode.endswith("-done"):
                yield computation, one, times

    yield from walk(program.entry, 1)
