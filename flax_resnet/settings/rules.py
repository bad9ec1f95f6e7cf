"""Rules for the values of settings: a predicate, and words for the error message."""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_resnet.settings.regex_cost import SAFE, is_safe

# The types of settings, in words.
TYPES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
}
# Training computes with int32 and float32. A number that is not 0 must not become 0 or infinite there.
LARGEST_INT = 2**31 - 1
SMALLEST, LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
LARGEST_IMAGE = 2**16  # height and width in pixels; larger numbers are probably typing errors


class Rule(NamedTuple):
    """A rule for a value.

    Attributes:
      holds: returns whether a value satisfies the rule.
      words: the rule in words, for error messages.
      numbers: whether a tuple setting holds numbers.
      schema: JSON schema of the values; it may accept more values than `holds`.
    """

    holds: Callable[[Any], bool]
    words: str
    numbers: bool = True
    schema: Mapping[str, Any] = {}  # shared by all rules, so never modify it


def one_of(*choices: Any) -> Rule:
    """Accept one of the choices."""
    words = f"one of {', '.join(map(str, choices))}"
    return Rule(lambda v: v in choices, words, schema={"enum": list(choices)})


def at_least(low: float) -> Rule:
    """Accept finite numbers of at least `low`."""
    return Rule(lambda v: math.isfinite(v) and v >= low, f"at least {low}", schema={"minimum": low})


def above(low: float) -> Rule:
    """Accept finite numbers above `low`."""
    return Rule(
        lambda v: math.isfinite(v) and v > low, f"above {low}", schema={"exclusiveMinimum": low}
    )


def within(low: float, high: float) -> Rule:
    """Accept numbers in [low, high]."""
    limits = {"minimum": low, "maximum": high}
    return Rule(lambda v: low <= v <= high, f"between {low} and {high}", schema=limits)


def per_channel(low: float, high: float) -> Rule:
    """Accept a tuple of three numbers, one number (grey images) or no number, each in [low, high]."""
    return Rule(
        lambda v: len(v) in (0, 1, 3) and all(low <= x <= high for x in v),
        f"3 numbers (1 for grey) between {low} and {high}",
    )


def ascending_pair(low: float, high: float) -> Rule:
    """Accept (a, b) with low <= a <= b <= high and b > 0."""
    return Rule(
        lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high and v[1] > 0,
        f"two ascending numbers between {low} and {high}",
    )


def _are_rules(pairs: tuple) -> bool:
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            return False
        if not isinstance(pair[1], int | float) or not math.isfinite(pair[1]) or pair[1] < 0:
            return False
        if not is_safe(pair[0]):
            return False
    return True


def _are_sizes(pairs: tuple) -> bool:
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return False
    if not all(isinstance(x, int | float) and math.isfinite(x) for pair in pairs for x in pair):
        return False
    starts = [start for start, _ in pairs]
    integral = all(1 <= size <= LARGEST_IMAGE and size == int(size) for _, size in pairs)
    return (
        integral and starts[:1] in ([], [0]) and all(a < b for a, b in itertools.pairwise(starts))
    )


ANY = Rule(lambda v: True, "any value")
NOT_EMPTY = Rule(bool, "not empty")
ASCENDING = Rule(
    lambda v: v and v[0] > 0 and all(a < b for a, b in itertools.pairwise((*v, math.inf))),
    "ascending numbers above 0",
)
WEIGHTS = Rule(
    lambda v: all(0 <= x < math.inf for x in v) and (not v or sum(v) > 0),
    "numbers of at least 0, not all 0",
)
BETAS = Rule(lambda v: len(v) == 2 and all(0 <= x < 1 for x in v), "two numbers from 0 to below 1")
SIZES = Rule(
    _are_sizes,
    f"(start, size) pairs whose starts ascend from 0, with sizes of 1 to {LARGEST_IMAGE:,} px",
    numbers=False,
)
MICROBATCH = Rule(
    # Up to nine digits: larger numbers are no batch size.
    lambda v: v in ("whole", "auto") or bool(re.fullmatch(r"0*[1-9]\d{0,8}", v, re.ASCII)),
    "'whole', 'auto', or a number from 1 to 999,999,999",
)
PARAMETER_RULES = Rule(
    _are_rules, f"(regex, number) pairs with {SAFE}, and numbers of at least 0", numbers=False
)


def in_words(kind: type, rule: Rule) -> str:
    """Describe the values of a setting: ``a whole number, at least 1``."""
    return TYPES[kind] if rule is ANY else f"{TYPES[kind]}, {rule.words}"


def out_of_range(value: Any) -> str:
    """Describe the numbers that training can compute with if `value` holds another; else return ""."""
    if isinstance(value, tuple):
        return next(filter(None, map(out_of_range, value)), "")
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return f"at most {LARGEST_INT:,} in size"
    if isinstance(value, float) and (abs(value) > LARGEST or 0 < abs(value) < SMALLEST):
        return f"0, or between {SMALLEST:.2g} and {LARGEST:.2g} in size"
    return ""
