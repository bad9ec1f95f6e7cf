"""Imports run one way, and importing the package is cheap."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "flax_resnet"
COMMANDS = {
    "main",
    "evaluate",
    "probe",
    "convert",
    "summary",
    "report",
    "preview",
    "prepare",
    "cli",
    "command",
    "confusion",
    "curve",
    "subject",
    "__init__",
}
# Each room, and the rooms it may import from.
BASE = {"errors", "rules", "sections", "config", "plan", "version"}
ALLOWED = {
    "errors": set(),
    "version": set(),
    "rules": set(),
    "sections": {"rules"},
    "config": {"errors", "sections"},
    "plan": {"errors", "config"},
    "memory": set(),
    "data": BASE | {"data"},
    "augment": BASE | {"augment"},
    "models": BASE | {"models"},
    "weights": BASE | {"weights"},
    "preprocessing": BASE,
    "training": BASE | {"memory", "data", "augment", "models", "weights", "training"},
    "classifier": BASE | {"augment", "models", "weights", "training", "preprocessing"},
}
HEAVY = {"tensorflow", "tensorflow_datasets"}


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    room = room_of(file)
    modules = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    for name in imported(file):
        parts = name.split(".")
        if (
            parts[0] == "flax_resnet"
            and len(parts) > 1
            and parts[1] in modules
            and room not in COMMANDS
        ):
            assert parts[1] in ALLOWED[room], f"{file}: {room} must not import {parts[1]}"
        if parts[0] in HEAVY:
            assert room == "data", f"{file}: only data/ imports {parts[0]}"
        if parts[0] == "orbax":
            assert file.name == "checkpoint.py", f"{file}: only checkpoint.py imports Orbax"
        if parts[0] == "torch":
            assert (room, file.name) == ("weights", "read.py"), f"{file}: imports torch"
        if parts[0] in ("safetensors", "huggingface_hub"):
            assert room == "weights", f"{file}: only weights/ imports {parts[0]}"


def test_no_room_for_odds_and_ends():
    names = {f.stem for f in FILES}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_importing_the_package_is_cheap():
    code = "import sys, flax_resnet; print(sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(out.stdout))
    assert {"jax", "flax"} <= loaded
    assert not loaded & {
        "tensorflow",
        "tensorflow_datasets",
        "torch",
        "matplotlib",
        "clu",
        "sklearn",
        "safetensors",
        "huggingface_hub",
    }


def test_the_readme_names_every_room():
    table = (ROOT / "README.md").read_text().partition("## How it is built")[2]
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", table))
    assert named == {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__", "version"}
