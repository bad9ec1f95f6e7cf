"""One setting: a field of a section with its rule, its meaning, and whether it changes what is trained."""

import dataclasses
from typing import Any

from flax_resnet.settings.rules import Rule


def setting(default: Any, rule: Rule, help: str, *, changes_result: bool = True) -> Any:
    """One field: its default, its rule, its meaning, and whether it changes what is trained."""
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, "changes_result": changes_result}
    )
