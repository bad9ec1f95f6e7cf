"""Conversion of a nested mapping of settings to the frozen configuration, with all checks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from flax_resnet.config.clashes import CLASHES
from flax_resnet.config.config import Config, sections, settings
from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.settings import LARGEST, TYPES, UNSET, out_of_range, refuse

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def freeze(values: "Mapping[str, Any] | ConfigDict") -> Config:
    """Convert a nested mapping (a ConfigDict, or parsed config.json) to the frozen configuration.

    Missing keys keep their defaults.

    Raises:
      ConfigError: a key is unknown, or a value has a wrong type or is out of range. The message is one line: the
        key, the value and the allowed values.
    """
    if not isinstance(values, Mapping):
        values = values.to_dict()
    known = settings()
    classes, built = sections(), {}
    for name, section in values.items():
        if name not in classes:
            raise ConfigError("unknown section", key=name, cure=suggestion(name, classes))
        if not isinstance(section, Mapping):
            raise ConfigError(key=name, value=section, allowed="a section of settings")
        types, fields = get_type_hints(classes[name]), {}
        for key, value in section.items():
            dotted = f"{name}.{key}"
            if dotted not in known:
                raise ConfigError("unknown setting", key=dotted, cure=suggestion(dotted, known))
            if value is UNSET and known[dotted].default is UNSET:
                continue
            fields[key] = _checked(dotted, value, types[key], known[dotted].metadata)
        built[name] = classes[name](**fields)
    config = Config(**built)
    refuse(CLASHES, config)
    return config


def _checked(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    rule, words = metadata["rule"], TYPES[kind]
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(tuple(part) if isinstance(part, list) else part for part in value)
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    number = float(value) if kind is float and fits and abs(value) <= LARGEST else value
    if not fits or (isinstance(value, bool) and kind is not bool):
        pass
    elif kind is tuple and rule.numbers and not all(isinstance(x, int | float) for x in value):
        words = "numbers"
    elif limit := out_of_range(number):
        words = limit
    elif rule.holds(number):
        return number
    else:
        words = rule.words
    raise ConfigError(key=key, value=value, allowed=f"{words} ({metadata['help']})")
