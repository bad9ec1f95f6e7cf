"""Sections of the configuration, and the declaration of their settings.

Some settings belong to others: the momentum to the optimizer, the parameters of mixup to mixup. Their defaults
apply only where they are used, and setting one that is not used is an error:

    choice(...)                 a setting that names a row of a registry; the row lists the settings that it uses
    setting(..., needs=...)     a setting that is used only with some values of other settings
"""

import dataclasses
import types
from collections.abc import Container, Mapping
from typing import Any, Self

from flax_resnet.errors import ConfigError
from flax_resnet.settings.clash import refuse
from flax_resnet.settings.rows import REQUIRED, Registry, Row
from flax_resnet.settings.rules import ANY, Rule

# Value of a setting that is not used; and the declared default of a setting that the rows of a registry use.
UNSET = None
ON = ...  # in Needs: any value except 0, False, "" and ()


@dataclasses.dataclass(frozen=True)
class Needs:
    """The values of other settings of the section with which a setting is used.

    Attributes:
      values: {setting: value, or ON}.
      every: whether all of the values are needed; otherwise, one is enough.
    """

    values: Mapping[str, Any]
    every: bool = True

    def hold(self, section: Any) -> bool:
        """Return whether a section has the values."""
        found = [
            bool(getattr(section, name)) if value is ON else getattr(section, name) == value
            for name, value in self.values.items()
        ]
        return all(found) if self.every else any(found)

    def words(self, prefix: str) -> str:
        """Describe the values: ``augment.mixup or augment.cutmix``; `prefix` is the section's name and a dot."""
        named = (
            f"{prefix}{name}" + ("" if value is ON else f"={value!r}")
            for name, value in self.values.items()
        )
        return (" and " if self.every else " or ").join(named)


def all_of(*names: str, **values: Any) -> Needs:
    """Need that the named settings are on, and that others have the given values."""
    return Needs({**dict.fromkeys(names, ON), **values})


def any_of(*names: str, **values: Any) -> Needs:
    """Need that one of the named settings is on, or that one of the others has the given value."""
    return Needs({**dict.fromkeys(names, ON), **values}, every=False)


def setting(
    default: Any, rule: Rule, help: str, *, needs: Needs | None = None, changes_result: bool = True
) -> Any:
    """Return a dataclass field for one setting.

    Args:
      default: the default value; UNSET if it depends on the chosen row of a registry, or on what is not in the
        section. With `needs`, REQUIRED if it must be set where it is used.
      rule: the rule that a value must satisfy.
      help: the meaning of the setting, for help texts.
      needs: with what the setting is used; None if it is always used, or if rows use it.
      changes_result: whether the setting changes the trained network.
    """
    metadata = {"rule": rule, "help": help, "changes_result": changes_result}
    if needs is None:
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(
        default=UNSET, metadata=metadata | {"needs": needs, "default": default}
    )


def choice(default: Any, registry: Registry, help: str, *, changes_result: bool = True) -> Any:
    """Return a dataclass field for a setting that names a row of a registry.

    Args:
      default: name of the default row; UNSET if what is not in the section determines the row. Then the section
        checks the name alone, and what determines the row checks what the row uses.
      registry: the rows.
      help: the meaning of the setting, for help texts.
      changes_result: whether the setting changes the trained network.
    """
    metadata = {"rule": ANY, "registry": registry, "help": help, "changes_result": changes_result}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base class of sections: frozen dataclasses. Settings that are used and not set get their defaults.

    Raises (from the constructor):
      ConfigError: a chosen row does not exist or needs a setting that is not set, or a setting is set but not used.
    """

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        for field in fields:
            if registry := field.metadata.get("registry"):
                if field.default is not UNSET:
                    self._fill_row(field.name, registry)
                elif getattr(self, field.name) is not UNSET:
                    self._row(field.name, registry)
        for field in fields:
            if needs := field.metadata.get("needs"):
                self._fill(field.name, field.metadata["default"], needs)
        for field in fields:
            registry, chosen = field.metadata.get("registry"), getattr(self, field.name)
            if registry and chosen is not UNSET:
                refuse(registry[chosen].clashes, self, self._prefix)

    @property
    def _prefix(self) -> str:
        return f"{type(self).__name__.lower()}."

    def _fill(self, name: str, default: Any, needs: Needs) -> None:
        value, used = getattr(self, name), needs.hold(self)
        if used and value is UNSET:
            if default is REQUIRED:
                raise self._not_set(name, needs.words(self._prefix))
            object.__setattr__(self, name, default)
        elif not used and value is not UNSET:
            values = {f"{self._prefix}{x}": getattr(self, x) for x in needs.values}
            found = " and ".join(
                f"{key} unset" if one is UNSET else f"{key}={one!r}" for key, one in values.items()
            )
            raise ConfigError(
                f"is not used with {found}",
                key=self._prefix + name,
                value=value,
                cure=f"leave it unset, or set {needs.words(self._prefix)}",
            )

    def _fill_row(self, setting: str, registry: Registry) -> None:
        row, key = self._row(setting, registry), self._prefix + setting
        for name in registry.settings:
            value = getattr(self, name)
            if value is not UNSET and name not in row.uses:
                raise not_used(self._prefix + name, value, key, row)
            if value is UNSET and name in row.uses:
                if row.uses[name] is REQUIRED:
                    raise self._not_set(name, f"{key}={row.name!r}")
                object.__setattr__(self, name, row.uses[name])

    def _row(self, setting: str, registry: Registry) -> Row:
        chosen = getattr(self, setting)
        if chosen not in registry:
            raise ConfigError(key=self._prefix + setting, value=chosen, allowed=tuple(registry))
        return registry[chosen]

    def _not_set(self, name: str, user: str) -> ConfigError:
        return ConfigError("is not set", key=self._prefix + name, cure=f"{user} needs it")

    def but(self, **values: Any) -> Self:
        """Return a copy with other values. The settings that are `outdated` become unset."""
        before = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        after = before | values
        dropped = dict.fromkeys(outdated(type(self), before, after, values), UNSET)
        return type(self)(**after | dropped)


def outdated(
    section: type, before: Mapping[str, Any], after: Mapping[str, Any], given: Container[str]
) -> dict[str, str]:
    """Return {setting: why} for the settings of a section that do not apply after a change; why names what changed.

    They belong to a choice that changed, as the momentum to the optimizer, or are no longer used, as the parameters
    of mixup without mixup.

    Args:
      section: the section's class.
      before: the values before the change, by setting.
      after: the values after the change.
      given: the settings that were given with the change; they are meant for the new values.
    """
    fields = {field.name: field.metadata for field in dataclasses.fields(section)}
    changed = {name for name in fields if before.get(name) != after.get(name)}
    why: dict[str, str] = {}
    for name, metadata in fields.items():
        if name in changed and "registry" in metadata:
            why |= dict.fromkeys(metadata["registry"].settings, name)
        if needs := metadata.get("needs"):
            owner = next((one for one in needs.values if one in changed), None)
            if owner and not needs.hold(types.SimpleNamespace(**after)):
                why[name] = owner
    return {k: v for k, v in why.items() if k not in given and after.get(k) is not UNSET}


def not_used(key: str, value: Any, choice: str, row: Row) -> ConfigError:
    """Return the error for a setting that a chosen row does not use.

    Args:
      key: the setting.
      value: its value.
      choice: the setting that names the row.
      row: the chosen row.
    """
    used = ", ".join(row.uses) or "no such setting"
    return ConfigError(
        f"is not used with {choice}={row.name!r}, which uses {used}",
        key=key,
        value=value,
        cure="leave it unset",
    )


def terms(section: Section, row: Row) -> list[str]:
    """Describe the settings that a row uses: ``momentum 0.9``, ``betas 0.9 0.999``; a boolean only if True."""
    return [term for name in row.uses if (term := _term(name, getattr(section, name)))]


def switch_terms(section: Section, *names: str) -> list[str]:
    """Describe settings that are on, each with the settings that need it: ``random erasing 0.2 (fill zero)``.

    A setting that needs it is left out if it is 0, False or empty. Its name is shown without the name of the other.
    """
    fields = dataclasses.fields(section)  # type: ignore[arg-type]  # subclasses are dataclasses
    described = []
    for name in names:
        own = [f.name for f in fields if name in getattr(f.metadata.get("needs"), "values", ())]
        on = [_term(one.removeprefix(f"{name}_"), v) for one in own if (v := getattr(section, one))]
        if term := getattr(section, name) and _term(name, getattr(section, name)):
            described.append(term + (f" ({', '.join(on)})" if on else ""))
    return described


def _term(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else ""
    parts = value if isinstance(value, tuple) else (value,)
    shown = " ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in parts)
    return f"{words} {shown}"
