"""The mistakes a user can make. Each is one line: what is wrong, the value, what is allowed, the cure.

A command prints the line and exits with code 2; any other exception is a bug of ours and keeps its
traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of everything a user can cause and mend."""


class ConfigError(UserError):
    """An unknown key or choice, a wrong type, or a value out of range."""


class DataError(UserError):
    """A dataset that is absent, empty, of the wrong kind, or unreadable."""


class WorkdirError(UserError):
    """A run folder that cannot be written, or holds something that does not fit the command."""


class CheckpointError(UserError):
    """No checkpoint, or none that is what was saved."""


class WeightsError(UserError):
    """Weights that cannot be read, or do not fit the network."""


class DivergedError(UserError):
    """The loss, or without end the gradient, is no longer a finite number."""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Returns ``did you mean 'x'?`` for the nearest of `choices`, or the list of them.

    >>> suggestion("resnet8", ["resnet18", "resnet50"])
    "did you mean 'resnet18'?"
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(choices)}"


def one_line(error: BaseException) -> str:
    """Returns the message of any exception as a single line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
