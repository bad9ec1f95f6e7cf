"""What the processes of a run tell each other on the host, through the store of JAX's distributed runtime.

Every function here is called by all processes, in the same order; in a run of one process, it does no more than its
own part. A process that never calls makes the others wait: `watch.py` ends them if it failed or is lost.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store has no public name

from flax_resnet.errors import ProcessError
from flax_resnet.training.processes.watch import PREFIX

# Milliseconds of one wait for a value: Python handles signals between two waits.
WAIT = 1000

T = TypeVar("T")

# JAX's runtime is one for the whole process, and so is the number of the next exchange.
_exchanges = itertools.count()


def store() -> Any:
    """Return the client of JAX's distributed runtime."""
    return distributed.global_state.client


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their numbers. `value` is a JSON value."""
    count = jax.process_count()
    if count == 1:
        return [value]
    place = f"{PREFIX}/exchange/{next(_exchanges)}"
    store().key_value_set(f"{place}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_wait_for(f"{place}/{number}")) for number in range(count)]


def first(action: Callable[[], T]) -> T:
    """Let process 0 alone do something, and return its result in all processes.

    The others wait until it is done. An error of it ends all processes (watch.py).

    Args:
      action: a function that returns a JSON value.
    """
    if jax.process_count() == 1:
        return action()
    return gather(action() if jax.process_index() == 0 else None)[0]


def in_turns(action: Callable[[], T]) -> T:
    """Do something in all processes: in process 0, then in all others, which find what process 0 has left."""
    if jax.process_count() == 1 or jax.process_index() == 0:
        result = action()
        gather(None)
        return result
    gather(None)
    return action()


def check_same(what: str, value: Any) -> None:
    """Raise ProcessError if a JSON value differs between processes; `what` names it: "the configuration"."""
    values = gather(value)
    odd = [number for number, found in enumerate(values) if found != values[0]]
    if odd:
        detail = _difference(values[0], values[odd[0]])
        raise ProcessError(
            f"{what} of process {odd[0]} differs from that of process 0{detail}",
            cure="start all processes with the same command, data and versions",
        )


def _difference(one: Any, other: Any) -> str:
    """Describe the first difference of two JSON values, for a message."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            if one.get(key) != other.get(key):
                inner = _difference(one.get(key), other.get(key))
                return f", {key}{inner.replace(', ', '.', 1) if ', ' in inner else inner}"
    return f": {other!r}, not {one!r}"


def _wait_for(key: str) -> str:
    while True:
        try:
            return store().blocking_key_value_get(key, WAIT)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
