"""A stage: a question, the command that answers it, and its time limit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.gpu.record import Measurement


class Stage(NamedTuple):
    """A part of the measurements, run as a separate command.

    Attributes:
      name: name of the stage and of its files.
      question: the question that it answers.
      seconds: time limit; a stage that reaches it is stopped, and its measurements are kept.
      command: module and arguments. Without `read`, the command gets `--record FILE` and writes a `StageRecord`.
        With `read`, it gets `--output FILE` and writes its own JSON format.
      packages: packages that it needs in addition to JAX, Flax, Optax and Orbax; if one is missing, it is skipped.
      environment: environment variables to set.
      read: converts the command's JSON file to measurements.
    """

    name: str
    question: str
    seconds: float
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    read: Callable[[dict[str, Any]], list[Measurement]] | None = None
