"""One setting: a field of a section with its rule, its help text, and whether it changes the result."""

import dataclasses
from typing import Any

from flax_resnet.settings.rules import Rule


def setting(default: Any, rule: Rule, help: str, *, changes_result: bool = True) -> Any:
    """Return a dataclass field for one setting.

    Args:
      default: the default value.
      rule: the rule that a value must satisfy.
      help: the meaning of the setting, for help texts.
      changes_result: whether the setting changes the trained network.
    """
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, "changes_result": changes_result}
    )
