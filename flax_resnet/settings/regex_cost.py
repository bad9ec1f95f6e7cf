"""A bound on the time that a regular expression can take, because Python's matching can take exponential time."""

import re
from typing import Any

NAME = 64  # assumed length of the text: names of parameters have at most some 50 characters
MOST_PATHS = (NAME + 1) ** 4
MOST_CHARACTERS = 1000
SAFE = "a regex of at most 4 repetitions, none inside another"


def is_safe(pattern: str) -> bool:
    """Return whether a text is a regular expression that can be searched in a name in a short time.

    The number of ways in which its parts can match bounds the time. A repetition of a part with several ways, such
    as ``(a+)+`` or ``(a|b)*``, has exponentially many.
    """
    if len(pattern) > MOST_CHARACTERS:
        return False
    try:
        re.compile(pattern)
        return _paths(re._parser.parse(pattern)) <= MOST_PATHS  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError, MemoryError):
        return False


def _paths(parts: Any) -> int:
    """Return the number of ways in which a parsed sequence can match a name, or a number above MOST_PATHS."""
    paths = 1
    for kind, value in parts:
        paths *= _paths_of(str(kind), value)
        if paths > MOST_PATHS:
            return paths
    return paths


def _paths_of(kind: str, value: Any) -> int:
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, part = value
        if low > NAME:  # no name is that long
            return 1
        high, inner = min(int(high), NAME), _paths(part)
        return high - low + 1 if inner == 1 else inner**high
    if kind == "BRANCH":
        return sum(map(_paths, value[1]))
    if kind == "SUBPATTERN":
        return _paths(value[-1])
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _paths(value[1])
    if kind == "ATOMIC_GROUP":
        return _paths(value)
    if kind == "GROUPREF_EXISTS":
        return _paths(value[1]) + _paths(value[2] or ())
    return 1
