"""The rules of the house: imports run one way, files and functions stay small, importing is cheap."""

import ast
import configparser
import re
import subprocess
import sys
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from benchmarks.lab.architecture import LEVELS, PACKAGE, imported_modules, room_of
from flax_resnet.models import create_model

# From bottom to top: a room imports from lower levels, and from itself.
DOORS = {"__init__", "__main__", "main"}
ORDER = (*reversed(LEVELS), tuple(DOORS))
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
# Packages that only some files import: their room, or the file.
ONLY = {
    "tensorflow": ("data/", "inference/export/"),
    "tensorflow_datasets": "data/",
    "array_record": "data/",
    "orbax": "training/runs/checkpoint.py",
    "datasets": "data/sources/hf.py",
    "torch": "weights/tensor_files.py",
    "safetensors": "weights/",
    "huggingface_hub": ("weights/hub.py", "weights/hub_upload.py", "inference/model_card.py"),
    "clu": ("training/runs/writers.py", "training/runs/tensorboard_details.py"),
    "sklearn": (
        *("inference/feature_classifiers.py", "inference/split_statistics.py"),
        *("inference/export/check_images.py", "data/digits/digits_dataset_builder.py"),
    ),
    "mlflow": "trackers/services/mlflow.py",
    "wandb": "trackers/services/wandb.py",
    "jinja2": "cli/",
    "gradio": "cli/demo_page.py",
    "matplotlib": "cli/",
    "absl": "cli/",
}
MOST_LINES, MOST_CODE, MOST_PARAMETERS = 350, 60, 8
# What is larger, with the reason; five at most.
EXCEPTIONS = {}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file):
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file):
    room = room_of(file)
    for name in imported_modules(file):
        assert not name.startswith("."), f"{name_of(file)}: relative import"
        top, *rest = name.split(".")
        if top in ONLY:
            assert name_of(file).startswith(ONLY[top]), f"{name_of(file)} imports {top}"
        other = rest[0] if top == "flax_resnet" and rest else ""
        if other in PLACE and other != room:
            assert PLACE[other] < PLACE[room], f"{name_of(file)}: {room} imports {other}"


def test_at_the_root_stand_only_the_doors():
    allowed = {"__init__.py", "__main__.py", "main.py", "errors.py", "version.py", "py.typed"}
    assert {f.name for f in PACKAGE.iterdir() if f.is_file()} == allowed
    folders = {f.name for f in PACKAGE.iterdir() if f.is_dir()} - {"__pycache__"}
    assert folders | DOORS | {"errors"} == set(PLACE)


def test_the_wheel_has_every_folder():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split()) - {"flax_resnet.configs"}
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in FILES}
    assert listed == folders


def test_no_two_files_have_one_name():
    names = Counter(f.name for f in FILES if room_of(f) != "cli" and not f.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {f"{n}.py" for n in ("utils", "util", "common", "helpers", "misc")}


def lines_of_code(function):
    """The lines of a function's body, its docstring apart."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def parameters_of(function):
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_files_and_functions_stay_small():
    large = {}
    for folder in ("flax_resnet", "benchmarks", "configs", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name, text = file.relative_to(ROOT).as_posix(), file.read_text()
            if (count := text.count("\n")) > MOST_LINES:
                large[name] = f"{count} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    code, parameters = lines_of_code(node), len(parameters_of(node))
                    if code > MOST_CODE or parameters > MOST_PARAMETERS:
                        what = f"{code} lines of code, {parameters} parameters"
                        large[f"{name}:{node.name}"] = what
    assert large.keys() == EXCEPTIONS.keys(), large
    assert len(EXCEPTIONS) <= 5


def test_tests_are_in_folders_like_the_packages():
    rooms = {room for room in PLACE if (PACKAGE / room).is_dir()}
    beside = {"benchmarks", "configs", "faults", "golden", "parity"}
    folders = {f.name for f in (ROOT / "tests").iterdir() if f.is_dir()} - {"__pycache__"}
    assert folders - rooms <= beside
    assert rooms - folders <= {"settings"}  # tested by what declares settings
    tests = [f.name for f in (ROOT / "tests").rglob("test_*.py")]
    assert len(tests) == len(set(tests))  # pytest takes a file's name for its module's


def module_names():
    """The modules of a few networks that have parameters, such as conv1 and layer1_0, at every depth."""
    names = set()
    for network in ("resnet18", "resnet50d", "resnetv2_50", "airbench94"):
        model = create_model(network)
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        params = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)[
            "params"
        ]
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            names |= {key.key for key in path[:-1]}
    return names


def strings_of(file):
    """The strings of a file that are code: neither docstrings nor the text around a value in a message."""
    tree = ast.parse(file.read_text())
    prose = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    prose |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_training_knows_no_parameter_names():
    """A network says which of its layers is special, and the names of its blocks (`models/network.py`)."""
    names = module_names() - {"norm"}  # also a word of optimizers
    assert {"conv1", "layer1_0", "fc"} <= names
    known = re.compile(rf"\b({'|'.join(sorted(names))})\b|layer\\?[d\d]|stages_")
    for room in ("optim", "config", "training", "inference", "cli"):
        for file in sorted((PACKAGE / room).rglob("*.py")):
            for text in strings_of(file):
                # Text with spaces is help for users, whose examples may name a layer.
                assert " " in text or not known.search(text), f"{name_of(file)}: {text!r}"


def test_importing_the_package_is_cheap():
    code = (
        "import sys, flax_resnet; [getattr(flax_resnet, name) for name in flax_resnet.__all__]; "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(out.stdout))
    assert {"jax", "flax"} <= loaded
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "matplotlib", "clu", "sklearn"}
    assert not loaded & (heavy | {"safetensors", "huggingface_hub", "ml_collections", "absl.flags"})
