"""The mistakes a user can make. Each is one line: the key, its value, what is wrong, what is allowed, the cure.

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
import errno
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

INTERRUPTED = 75  # EX_TEMPFAIL of <sysexits.h>


class UserError(ValueError):
    """Base of everything a user can cause and mend.

    The message is the fields in one line: ``KEY=VALUE: PROBLEM; must be ALLOWED; CURE``. Without a value it begins
    with ``KEY:``. A field that is not given is left out.

    Attributes:
      key: what is at fault: a setting ("train.batch_size"), a flag ("--workdir"), an environment variable, an
        argument, or a file.
      value: the value at fault; `...` if there is none to show.
      problem: what is wrong.
      allowed: what is allowed, in words that follow "must be", or a tuple of choices. Of choices, the message names
        the nearest one, or all.
      cure: what to do.
      exit_code: exit code of a command that raises this error.

    >>> str(UserError("more than the data hold", key="train.batch_size", value=64, allowed="at most 32"))
    'train.batch_size=64: more than the data hold; must be at most 32'
    """

    exit_code = 2

    def __init__(
        self,
        problem: str = "",
        *,
        key: str | os.PathLike = "",
        value: Any = ...,
        allowed: str | Iterable[str] = "",
        cure: str = "",
    ) -> None:
        self.key, self.value, self.problem, self.cure = str(key), value, problem, cure
        self.allowed = allowed if isinstance(allowed, str) else tuple(allowed)
        head = self.key if value is ... else f"{self.key}={_shown(self.key, value)}"
        if isinstance(self.allowed, tuple):
            limits = suggestion(str(value), self.allowed)
        else:
            limits = self.allowed and f"must be {self.allowed}"
        body = "; ".join(filter(None, (problem, limits, cure)))
        super().__init__(": ".join(filter(None, (head, body))))


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
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Inside this block an OSError becomes an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {one_line(error)}", key=path) from error


def recognized(error: Exception) -> UserError | None:
    """Return the mistake that an exception of a library stands for, or None if it may be a bug of ours."""
    text = one_line(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot be written: {text}", key=error.filename or "standard output")
    if isinstance(error, RuntimeError) and "home directory" in text:  # what pathlib says of ~nobody
        return ConfigError("a path begins with ~ and a name that is no user's here")
    if isinstance(error, MemoryError) or re.search(r"RESOURCE_EXHAUSTED|\bOOM\b", text):
        return ConfigError(
            f"is too small: {text}",
            key="memory",
            cure="decrease the batch size or the image size, or train with train.microbatch_size='auto'",
        )
    return None


def _shown(key: str, value: Any) -> str:
    """Return a value as the user wrote it: text in quotes, but not that of a flag or an environment variable."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if key.startswith("--") or key.isupper() else repr(value)


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
