"""What a stage is: a question, a command that answers it, and its time limit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.gpu.record import Measurement


class Stage(NamedTuple):
    """A part of the measurements, run as a command of its own.

    Attributes:
      name: of its files.
      question: that it answers.
      seconds: it may take; then it is stopped, and what it has measured is kept.
      command: module and arguments. It is given `--record FILE` and writes a `StageRecord` there; with `read`, it
        is given `--output FILE` and writes a JSON file of its own.
      packages: that it needs beside JAX, Flax, Optax and Orbax; where one is missing the stage is skipped.
      environment: variables that are set for it.
      read: makes measurements of the JSON file that the command wrote.
    """

    name: str
    question: str
    seconds: float
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    read: Callable[[dict[str, Any]], list[Measurement]] | None = None
