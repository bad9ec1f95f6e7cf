"""Sections of the configuration, and the declaration of their settings."""

import dataclasses
from typing import Any

from flax_resnet.errors import ConfigError
from flax_resnet.settings.rows import REQUIRED, Registry, Row
from flax_resnet.settings.rules import ANY, Rule

# Default of a setting whose default depends on the row that is chosen from a registry.
UNSET = None


def setting(default: Any, rule: Rule, help: str, *, changes_result: bool = True) -> Any:
    """Return a dataclass field for one setting.

    Args:
      default: the default value; UNSET if it depends on the chosen row of a registry.
      rule: the rule that a value must satisfy.
      help: the meaning of the setting, for help texts.
      changes_result: whether the setting changes the trained network.
    """
    return dataclasses.field(
        default=default, metadata={"rule": rule, "help": help, "changes_result": changes_result}
    )


def choice(default: str, registry: Registry, help: str, *, changes_result: bool = True) -> Any:
    """Return a dataclass field for a setting that names a row of a registry. Arguments are those of `setting`."""
    return dataclasses.field(
        default=default,
        metadata={
            "rule": ANY,
            "registry": registry,
            "help": help,
            "changes_result": changes_result,
        },
    )


class Section:
    """Base class of sections with a `choice`: frozen dataclasses. Unset settings get the chosen row's defaults.

    Raises (from the constructor):
      ConfigError: the row does not exist, does not use a setting that is set, or needs a setting that is not set.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if registry := field.metadata.get("registry"):
                self._fill(field.name, registry)

    def _fill(self, setting: str, registry: Registry) -> None:
        section, chosen = type(self).__name__.lower(), getattr(self, setting)
        key = f"{section}.{setting}"
        if chosen not in registry:
            raise ConfigError(key=key, value=chosen, allowed=tuple(registry))
        uses = registry[chosen].uses
        for name in registry.settings:
            value, own_key = getattr(self, name), f"{section}.{name}"
            if value is not UNSET and name not in uses:
                raise ConfigError(
                    f"is not used with {key}={chosen!r}, which uses {', '.join(uses) or 'no such setting'}",
                    key=own_key,
                    value=value,
                    cure="leave it unset",
                )
            if value is UNSET and name in uses:
                if uses[name] is REQUIRED:
                    raise ConfigError("is not set", key=own_key, cure=f"{key}={chosen!r} needs it")
                object.__setattr__(self, name, uses[name])


def terms(section: Section, row: Row) -> list[str]:
    """Describe the settings that a row uses: ``momentum 0.9``, ``betas 0.9 0.999``; a boolean only if True."""
    described = []
    for name in row.uses:
        value, words = getattr(section, name), name.replace("_", " ")
        if isinstance(value, bool):
            described += [words] if value else []
        else:
            parts = value if isinstance(value, tuple) else (value,)
            shown = " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in parts)
            described.append(f"{words} {shown}")
    return described
