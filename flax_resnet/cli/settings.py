"""Search the settings of a configuration: flax-resnet settings [TEXT]

Prints each setting whose name or meaning contains TEXT, with its type, default, allowed values and meaning, and the
choices that use it. Set one with --config.SECTION.NAME=VALUE, or in a configuration file.

--format=markdown prints docs/settings.md; --format=json_schema prints a JSON schema of a run's config.json.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, get_type_hints

from absl import flags

from flax_resnet.cli import app
from flax_resnet.config.config import owners, sections, settings
from flax_resnet.errors import ConfigError
from flax_resnet.settings import REQUIRED, UNSET

HEAD = """# Settings

Printed by `python -m flax_resnet settings --format=markdown`. `python -m flax_resnet settings TEXT` searches.

Change a setting on the command line with `--config.SECTION.NAME=VALUE`, or in a configuration file with
`config.SECTION.NAME = VALUE`. Some settings belong to a choice, such as the momentum to the optimizer. Their
defaults depend on the choice. Leave them unset for a choice that does not use them."""
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet settings", __doc__, _define, _print, argv, positional=("text",))


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    flags.DEFINE_string("text", "", "text to search for, such as warmup", flag_values=values)
    flags.DEFINE_string(
        "format",
        "text",
        f"one of {', '.join(FORMATS)}; TEXT can be given only with text",
        flag_values=values,
    )


def _print(values: flags.FlagValues) -> None:
    form, text = app.flag(values, "format"), app.flag(values, "text")
    if form not in FORMATS:
        raise ConfigError(key="--format", value=form, allowed=FORMATS)
    if text and form != "text":
        raise ConfigError("can be given only with --format=text", key="--text", value=text)
    described = [one for one in descriptions() if text.lower() in one.searched()]
    if not described:
        raise ConfigError("no setting contains this text", key="--text", value=text)
    print(FORMATS[form](described))


@dataclasses.dataclass(frozen=True)
class Description:
    """The description of a setting.

    Attributes:
      key: the dotted key.
      type: the Python type.
      default: the default, or the defaults by choice.
      allowed: the allowed values; "" for any.
      meaning: the help text.
      choices: {choice: its help text and the settings that it uses}; {} if the setting is not a choice.
      schema: the JSON schema of the value.
    """

    key: str
    type: type
    default: str
    allowed: str
    meaning: str
    choices: dict[str, str]
    schema: dict[str, Any]

    def searched(self) -> str:
        """Return the text that is searched, in lower case."""
        return " ".join((self.key, self.meaning, *self.choices, *self.choices.values())).lower()


def descriptions() -> list[Description]:
    """Describe all settings, in the order of the configuration."""
    fields = settings()
    kinds = {name: get_type_hints(section) for name, section in sections().items()}
    choice_of, described = owners(), []
    for key, field in fields.items():
        section, name = key.split(".")
        registry, rule = field.metadata.get("registry", {}), field.metadata["rule"]
        if needs := field.metadata.get("needs"):
            default = f"{_shown(field.metadata['default'])} with {needs.words(f'{section}.')}"
        elif key in choice_of:
            default = _defaults(name, choice_of[key][0])
        else:
            default = "" if field.default is UNSET else repr(field.default)
        choices = {
            row.name: row.help + (f"; uses {', '.join(row.uses)}" if row.uses else "")
            for row in registry.values()
        }
        schema = {"type": TYPES[kinds[section][name]], "description": field.metadata["help"]}
        schema |= {"enum": list(choices)} if choices else rule.schema
        if field.default is not UNSET:
            schema["default"] = field.default
        else:  # null in config.json if the chosen row does not use the setting
            schema["type"] = [schema["type"], "null"]
            schema |= {"enum": [*schema["enum"], None]} if "enum" in schema else {}
        allowed = ", ".join(choices) or ("" if rule.words == "any value" else rule.words)
        meaning = field.metadata["help"]
        described.append(
            Description(key, kinds[section][name], default, allowed, meaning, choices, schema)
        )
    return described


def _defaults(name: str, choice: str) -> str:
    """Return the defaults of a setting that belongs to a choice: ``0.9 with optimizer.name=lars, sgd``."""
    by_value: dict[str, list[str]] = {}
    for row in settings()[choice].metadata["registry"].values():
        if row.uses.get(name) is not UNSET:
            by_value.setdefault(_shown(row.uses[name]), []).append(row.name)
    return "; ".join(f"{value} with {choice}={', '.join(rows)}" for value, rows in by_value.items())


def _shown(default: Any) -> str:
    return "to be set" if default is REQUIRED else repr(default)


def as_text(described: Sequence[Description]) -> str:
    """Format settings for a terminal."""
    lines = []
    for one in described:
        allowed = f", {one.allowed}" if one.allowed else ""
        lines += [f"{one.key}: {one.type.__name__}{allowed}", f"    {one.meaning}"]
        lines += [f"    default: {one.default}"]
        lines += [f"      {name}: {words}" for name, words in one.choices.items()]
    return "\n".join(lines)


def as_markdown(described: Sequence[Description]) -> str:
    """Format settings as the page docs/settings.md: a table for each section, and one for each choice."""
    lines = [HEAD]
    for name, section in sections().items():
        summary = (section.__doc__ or "").partition("\n")[0]
        lines += ["", f"## {name}", "", summary, ""]
        lines += ["| setting | type | default | allowed | meaning |", "|---|---|---|---|---|"]
        own = [one for one in described if one.key.startswith(f"{name}.")]
        for one in own:
            cells = (one.type.__name__, one.default, one.allowed, one.meaning)
            lines.append(
                f"| `{one.key}` | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
            )
        for one in own:
            if one.choices:
                lines += ["", f"Choices of `{one.key}`:", ""]
                lines += [f"- `{choice}`: {words}" for choice, words in one.choices.items()]
    return "\n".join(lines)


def as_json_schema(described: Sequence[Description]) -> str:
    """Format settings as the JSON schema of config.json."""
    properties: dict[str, Any] = {"schema": {"type": "integer"}}
    for one in described:
        section, _, name = one.key.partition(".")
        empty = {"type": "object", "additionalProperties": False, "properties": {}}
        properties.setdefault(section, empty)["properties"][name] = one.schema
    return json.dumps(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Configuration of flax_resnet",
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
        },
        indent=1,
    )


FORMATS = {"text": as_text, "markdown": as_markdown, "json_schema": as_json_schema}

if __name__ == "__main__":
    sys.exit(main())
