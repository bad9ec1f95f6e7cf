"""Clashes: values that are each valid but do not fit together."""

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any

from flax_resnet.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clash:
    """A combination of values that is refused.

    The texts are format strings of the checked object `c`, such as ``"a divisor of {c.train.batch_size}"``.

    Attributes:
      key: dotted name of the attribute that the error names.
      when: (checked object) -> whether the values clash.
      problem: why the values clash.
      allowed: text that completes "must be ...".
      cure: what the user can do.
    """

    key: str
    when: Callable[[Any], bool]
    problem: str = ""
    allowed: str = ""
    cure: str = ""


def refuse(clashes: Iterable[Clash], checked: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first clash that applies.

    Args:
      clashes: the clashes.
      checked: the object that has the values as attributes.
      prefix: put before `Clash.key` in the message.
    """
    for clash in clashes:
        if clash.when(checked):
            texts = (clash.problem, clash.allowed, clash.cure)
            problem, allowed, cure = (text.format(c=checked) for text in texts)
            raise ConfigError(
                problem,
                key=prefix + clash.key,
                value=operator.attrgetter(clash.key)(checked),
                allowed=allowed,
                cure=cure,
            )
