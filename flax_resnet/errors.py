"""The mistakes a user can make. Each is one line: what is wrong, the value, what is allowed, the cure.

A command prints the line and exits with the error's code; any other exception is a bug of ours and keeps its
traceback. Schedulers tell by the code what to do:

    0    done
    2    a mistake in the command or the configuration: do not try again
    3    training diverged
    4    the data are missing, empty, of the wrong kind, or unreadable
    5    the disk, the run folder or a checkpoint: full, not writable, damaged, or of another run
    75   interrupted by a signal and saved: run the same command again
    128+n  ended at once by signal n
"""

import contextlib
import difflib
import pathlib
from collections.abc import Iterable, Iterator

INTERRUPTED = 75  # EX_TEMPFAIL of <sysexits.h>


class UserError(ValueError):
    """Base of everything a user can cause and mend.

    Attributes:
      exit_code: exit code of a command that raises this error.
    """

    exit_code = 2


class ConfigError(UserError):
    """An unknown key or choice, a wrong type, or a value out of range."""


class DataError(UserError):
    """A dataset that is absent, empty, of the wrong kind, or unreadable."""

    exit_code = 4


class OutputError(UserError):
    """A file or folder, other than a run folder, that cannot be written."""

    exit_code = 5


class WorkdirError(UserError):
    """A run folder that cannot be written, or holds something that does not fit the command."""

    exit_code = 5


class CheckpointError(UserError):
    """No checkpoint, or none that is what was saved."""

    exit_code = 5


class WeightsError(UserError):
    """Weights that cannot be read, or do not fit the network."""


class DivergedError(UserError):
    """The loss, or without end the gradient, is no longer a finite number."""

    exit_code = 3


class Interrupted(Exception):
    """A signal asked training to stop; the state is saved."""


@contextlib.contextmanager
def writing(path: str | pathlib.Path) -> Iterator[None]:
    """Inside this block an OSError becomes an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {one_line(error)}") from error


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest of `choices`, or the list of them.

    >>> suggestion("resnet8", ["resnet18", "resnet50"])
    "did you mean 'resnet18'?"
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(choices)}"


def one_line(error: BaseException) -> str:
    """Return the message of any exception as a single line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
