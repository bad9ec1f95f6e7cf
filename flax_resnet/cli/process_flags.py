"""The flags of commands that several processes run together, and how such a process begins and ends."""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from absl import flags

from flax_resnet.cli import app, device
from flax_resnet.cli.exit_codes import exit_code
from flax_resnet.errors import ConfigError, Interrupted, UserError, one_line, recognized
from flax_resnet.training.processes.launcher import Launch, find_launch

# Seconds within which process 0 tells of an error that all processes meet.
SAME_ERROR = 3.0


def define(values: flags.FlagValues) -> None:
    """Define --coordinator, --num_processes, --process_id, --join_timeout and --lost_after."""
    flags.DEFINE_string(
        "coordinator",
        "",
        "with several processes: HOST:PORT of process 0. Under Slurm and Open MPI, none of these flags is needed",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "number of processes; all run the same command", flag_values=values
    )
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", flag_values=values)
    flags.DEFINE_integer(  # a float may be NaN, which no bound refuses
        "join_timeout",
        300,
        "seconds to wait for the other processes at the start",
        lower_bound=1,
        upper_bound=24 * 3600,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "lost_after",
        60,
        "seconds without a sign of life after which a process counts as lost, and all others end",
        lower_bound=5,
        upper_bound=24 * 3600,
        flag_values=values,
    )


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[int]:
    """Join the processes that belong to this one, if there are any, and do the work inside this block with them.

    The block receives the number of this process. An error in one process ends all of them with the same exit code.

    Raises:
      ConfigError: the flags or the environment's variables are wrong.
      ProcessError: as `join` and `check_devices`.
    """
    launch = _launch(values)
    if launch is None:
        device.check(app.flag(values, "device"))
        yield 0
        return
    # Before the watch starts: loading TensorFlow from a network file system may hold Python's lock for long.
    import flax_resnet.training.trainer  # noqa: F401
    from flax_resnet.training.processes import join

    watch = join.join(
        launch,
        timeout=app.flag(values, "join_timeout"),
        lost_after=app.flag(values, "lost_after"),
    )
    log, only_warnings = logging.getLogger("flax_resnet"), _Filter(launch)
    if launch.process_id:
        log.addFilter(only_warnings)
    interrupted = None
    try:
        device.check(app.flag(values, "device"))
        join.check_devices()
        yield launch.process_id
    except Interrupted as error:  # agreed: it is raised in all processes
        interrupted = error
    except BaseException as error:
        _end(watch, launch, error)
    join.leave(watch)
    log.removeFilter(only_warnings)
    if interrupted:
        if launch.process_id == 0:
            raise interrupted
        raise Interrupted


def check_alone(values: flags.FlagValues, what: str) -> None:
    """Raise ConfigError if several processes run a command that one process runs alone; `what` names it."""
    if launch := _launch(values):
        raise ConfigError(
            f"{what} is computed in one process",
            key="--num_processes",
            value=launch.num_processes,
            allowed="left out",
        )


def _launch(values: flags.FlagValues) -> Launch | None:
    names = ("coordinator", "num_processes", "process_id")
    return find_launch(*(app.flag(values, name) for name in names))


class _Filter(logging.Filter):
    """Pass warnings on, with the number of the process, and nothing below."""

    def __init__(self, launch: Launch):
        super().__init__()
        self._process = launch.process_id

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = f"process {self._process}: {record.getMessage()}", ()
        return record.levelno >= logging.WARNING


def _end(watch: Any, launch: Launch, error: BaseException) -> None:
    """End this process because of an error of its own, or of another process that this error follows from."""
    failure = None
    if _follows_from_another(error):
        failure = watch.failure(watch.lost_within)
    if failure:
        watch.report(failure)
        code = failure["code"]
    else:
        mistake = error if isinstance(error, UserError) else None
        line = one_line(error)
        if launch.process_id and mistake:
            # All processes may have made the same mistake, such as a wrong setting; process 0 prints it.
            watch.fail(mistake.exit_code, line)
            first = watch.failure(SAME_ERROR)
            code = mistake.exit_code if first and first["line"] == line else _report(error)
        else:
            code = _report(error)
            watch.fail(code, line)
    watch.leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # JAX's own end would wait for processes that are in a collective operation


def _report(error: BaseException) -> int:
    """Print an error as a command does, and return its exit code."""

    def again() -> None:
        raise error

    try:
        with exit_code() as ended:
            again()
        return ended.code
    except Exception:  # a bug keeps its traceback
        traceback.print_exc()
        return 1


def _follows_from_another(error: BaseException | None) -> bool:
    """Return whether an error may follow from the end of another process: a collective operation has failed."""
    import jax

    while error is not None:
        # jaxlib raises some errors of its runtime as ValueError; their messages begin with a status of absl.
        is_status = re.match("[A-Z]+(_[A-Z]+)*: ", str(error))
        if isinstance(error, jax.errors.JaxRuntimeError) or (
            isinstance(error, ValueError) and not isinstance(error, UserError) and is_status
        ):
            return recognized(error) is None
        error = error.__cause__ or error.__context__
    return False
