"""2,000 mutated configurations: each command ends in a plan, or in one line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.lab import command_fuzz
from benchmarks.lab.command_fuzz import PLAN, RECIPE, REFUSAL, Case, outcome_of
from flax_resnet.cli import config_flag
from flax_resnet.errors import ConfigError

NUMBER = 2000


@pytest.mark.faults
def test_mutated_configurations_end_in_a_plan_or_in_one_line(tmp_path):
    output, root = tmp_path / "record.json", {*os.listdir("/")}
    command = ["-m", "benchmarks.lab.command_fuzz", f"--number={NUMBER}", f"--output={output}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads(output.read_text())
    assert record["findings"] == []
    assert record["counts"].keys() == {PLAN, REFUSAL}
    assert record["counts"][PLAN] > NUMBER / 100
    assert sum(record["counts"].values()) == NUMBER
    assert {*os.listdir("/")} == root


def test_other_ends_are_findings(tmp_path, monkeypatch):
    """With a plan, a refusal, an exception, a file in a run folder, and two lines."""
    case = Case((*RECIPE, "--dry_run", "--config.train.batch_size=0"))
    assert outcome_of(case, tmp_path) == (REFUSAL, "")

    def fails(values):
        raise KeyError("a bug")

    def writes(values):
        (tmp_path / "run" / "new").touch()
        raise ConfigError("a refusal")

    def says_more(values):
        print("error: one", file=sys.stderr)
        raise ConfigError("a refusal")

    for frozen_config, outcome in ((fails, "exception"), (writes, "written"), (says_more, "lines")):
        with monkeypatch.context() as patch:
            patch.setattr(config_flag, "frozen_config", frozen_config)
            assert outcome_of(case, tmp_path)[0] == outcome


def test_values_hold_no_path_outside(tmp_path):
    import numpy as np

    for number in range(300):
        case = command_fuzz.drawn(np.random.default_rng([7, number]), tmp_path)
        for argument in case.arguments:
            _, equals, value = argument.partition("=")
            inside = value.startswith(str(tmp_path)) or not value.startswith(("/", "~"))
            assert not equals or (inside and "../" not in value), argument
        assert pathlib.Path(tmp_path).is_dir()
