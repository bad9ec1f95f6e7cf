"""Errors that a user can cause and fix. Each message is one line: key, value, problem, allowed values, cure.

A command prints this line and exits with the error's exit code. Any other exception is a bug in flax_resnet and
keeps its traceback. A scheduler can decide by the exit code what to do:

    0    done
    2    the command or the configuration is wrong: do not retry
    3    training diverged
    4    the data are missing, empty, of the wrong kind, or unreadable
    5    the disk is full; or a file, run folder or checkpoint cannot be written, is corrupted or of another run;
         or the outputs of an exported model differ
    75   a signal interrupted training, and the state was saved: run the same command again to resume
    128+n  signal n ended the command immediately
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
    """Base class of errors that a user can cause and fix.

    The message joins the fields in one line: ``KEY=VALUE: PROBLEM; must be ALLOWED; CURE``. Without a value, it
    begins with ``KEY:``. Fields that are not given are left out.

    Attributes:
      key: name of the wrong input: a setting ("train.batch_size"), a flag ("--workdir"), an environment variable,
        an argument, or a file.
      value: the wrong value; `...` if there is none to show.
      problem: description of the problem.
      allowed: the allowed values: a text that completes "must be ...", or a tuple of choices. For a tuple, the
        message suggests the choice nearest to `value`, or lists all choices if none is near.
      cure: what the user can do.
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
            limits = suggestion(value if isinstance(value, str) else "", self.allowed)
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
    """A checkpoint that is missing, is corrupted, or cannot be written."""

    exit_code = 5


class BrokenCheckpointError(CheckpointError):
    """A checkpoint that is proven not to be what was saved: files are missing, truncated or changed."""


class WeightsError(UserError):
    """Weights that are missing, cannot be read or written, or do not fit the network."""


class ExportError(UserError):
    """An exported model that is damaged, or whose outputs differ from those of its network."""

    exit_code = 5


class DivergedError(UserError):
    """Training diverged: the loss or the state is not finite, or the gradient keeps overflowing."""

    exit_code = 3


class Interrupted(Exception):
    """A signal interrupted training; the state was saved."""


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Convert an OSError inside this block to an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot be written: {one_line(error)}", key=path) from error


def recognized(error: Exception) -> UserError | None:
    """Return the UserError for a library's exception, or None if the exception may be a bug in flax_resnet."""
    text = one_line(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(f"cannot be written: {text}", key=error.filename or "standard output")
    if isinstance(error, RuntimeError) and "home directory" in text:  # pathlib's error for ~nobody
        return ConfigError("a path begins with ~ and the name of an unknown user")
    if is_out_of_memory(error):
        return ConfigError(
            f"is too small: {text}",
            key="memory",
            cure="decrease the batch size or the image size; for training, also train.microbatch_size=auto, "
            "model.remat=block, or train.sharding=optimizer on several devices",
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the memory of the host or of a device is full."""
    full = re.search(r"RESOURCE_EXHAUSTED|\bOOM\b", str(error))
    return isinstance(error, MemoryError) or full is not None


def _shown(key: str, value: Any) -> str:
    """Format a value for a message. Text is quoted, except values of flags, arguments and environment variables."""
    if isinstance(value, float):
        return f"{value:g}"
    try:
        return str(value) if key.startswith("--") or key.isupper() else repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return "a number too large to print"


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


def printable(path: str | os.PathLike) -> str:
    """Return a path that can be printed in one line and stored as UTF-8; other bytes become ``\\xff``."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub("[\\x00-\\x1f\\x7f]", lambda found: ascii(found[0])[1:-1], text)
