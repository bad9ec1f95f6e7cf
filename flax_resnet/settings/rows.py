"""Choices: values of a setting that each have code of their own, such as the optimizers of ``optimizer.name``."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

REQUIRED = ...  # default of a setting that must be set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One choice, and all that the rest of the package needs to know about it. Rooms extend it by their code.

    Attributes:
      name: the value of the setting.
      help: what it is, in a few words.
      uses: {setting of the same section: its default with this choice, or REQUIRED}. A setting that belongs to a
        registry (some row uses it) and that the chosen row does not use must be left unset.
    """

    name: str
    help: str
    uses: Mapping[str, Any] = dataclasses.field(default_factory=dict)


R = TypeVar("R", bound=Row)


class Registry(Mapping[str, R]):
    """The rows of a setting by name, in the order of their modules.

    Args:
      module: name of a module with a tuple of rows, or of a package, all of whose modules have one. It is imported
        when the rows are first read, so that rows may import the section that they belong to.
      rows: name of the tuple.
    """

    def __init__(self, module: str, rows: str = "ROWS") -> None:
        self._module, self._name = module, rows

    @functools.cached_property
    def _rows(self) -> dict[str, R]:
        return {
            row.name: row
            for module in _modules(self._module)
            for row in getattr(module, self._name)
        }

    @functools.cached_property
    def settings(self) -> dict[str, None]:
        """The settings that belong to this registry: those that a row uses. (A dictionary, to keep their order.)"""
        return {name: None for row in self.values() for name in row.uses}

    def __getitem__(self, name: str) -> R:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _modules(name: str) -> list[ModuleType]:
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return [module]
    return [
        importlib.import_module(f"{name}.{found.name}")
        for found in pkgutil.iter_modules(module.__path__)
    ]
