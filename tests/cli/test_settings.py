"""The command `settings`, which searches the settings and prints the page and the schema in docs/."""

import dataclasses
import json

import pytest
from conftest import ROOT

from flax_resnet.cli import commands
from flax_resnet.config import Config, owners, settings
from flax_resnet.optim.optimizer_section import OPTIMIZERS


def printed(capsys, *arguments):
    assert commands.main(["settings", *arguments]) == 0
    return capsys.readouterr().out


def test_every_setting_is_found_by_its_name(capsys):
    listed = [line for line in printed(capsys).splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in listed] == list(settings())


def test_a_search_finds_names_descriptions_and_choices(capsys):
    text = printed(capsys, "warm")
    assert "schedule.warmup: float, at least 0" in text
    assert "length of the linear warm-up" in text
    assert "data.name" not in text
    assert "optimizer.name" in printed(capsys, "--text=LION")


def test_a_choice_lists_its_rows_and_their_settings(capsys):
    text = printed(capsys, "momentum")
    assert all(f"      {name}: {row.help}" in text for name, row in OPTIMIZERS.items())
    assert "default: 0.9 with optimizer.name=lars, muon, rmsprop, schedule_free_sgd, sgd" in text


@pytest.mark.parametrize(
    ("form", "file"), [("markdown", "settings.md"), ("json_schema", "settings.schema.json")]
)
def test_the_files_in_docs_are_what_the_command_prints(form, file, capsys):
    stored = (ROOT / "docs" / file).read_text(encoding="utf-8")
    command = f"python -m flax_resnet settings --format={form} > docs/{file}"
    assert stored == printed(capsys, f"--format={form}"), f"run: {command}"


def test_the_schema_allows_the_default_configuration():
    schema = json.loads((ROOT / "docs" / "settings.schema.json").read_text())
    types = {"boolean": bool, "integer": int, "number": (int, float), "string": str, "array": list}
    stored = json.loads(json.dumps(dataclasses.asdict(Config())))
    for section, values in stored.items():
        properties = schema["properties"][section]["properties"]
        assert properties.keys() == values.keys()
        for name, value in values.items():
            own = properties[name]
            if value is None:
                assert "null" in own["type"]
                assert None in own.get("enum", [None])
                continue
            kind = own["type"] if isinstance(own["type"], str) else own["type"][0]
            assert isinstance(value, types[kind]), name
            assert value in own.get("enum", [value])
            if kind in ("integer", "number"):
                assert own.get("minimum", value) <= value <= own.get("maximum", value)
                assert value > own.get("exclusiveMinimum", value - 1)


@pytest.mark.parametrize(
    "arguments", [["nothing like it"], ["--format=html"], ["x", "--format=markdown"]]
)
def test_a_search_without_matches_and_invalid_flags_are_one_line(arguments, capsys):
    assert commands.main(["settings", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --")


def test_the_schema_allows_null_for_a_setting_that_the_choice_does_not_use():
    schema = json.loads((ROOT / "docs" / "settings.schema.json").read_text())
    for key, choice in owners().items():
        section, name = key.split(".")
        own = schema["properties"][section]["properties"][name]
        assert "null" in own["type"], choice
        assert None in own.get("enum", [None]), choice
