"""Registries of choices: settings whose value selects code, such as ``optimizer.name``."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from flax_resnet.settings.clash import Clash

REQUIRED = ...  # default of a setting that must be set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One choice: a value that selects code. Subclasses add fields for the code that the value selects.

    Attributes:
      name: the value of the setting.
      help: short description, for help texts.
      uses: {setting of the same section: its default with this choice, REQUIRED, or UNSET if what is not in the
        section determines the default}. A setting that other rows of the registry use, but the chosen row does
        not, must be left unset.
      clashes: values of the section that are refused with this choice.
    """

    name: str
    help: str
    uses: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clashes: tuple[Clash, ...] = ()


R = TypeVar("R", bound=Row)


class Registry(Mapping[str, R]):
    """The rows of a setting by name, in the order of their modules.

    Args:
      module: name of a module that defines a tuple of rows, or of a package whose modules all define one. It is
        imported when the rows are first read, so that rows may import the section that they belong to.
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
        """The settings that any row uses, as the keys of a dictionary, which keeps their order."""
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
