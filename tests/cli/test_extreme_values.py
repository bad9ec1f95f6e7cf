"""Far too large numbers, invalid names, unreadable folders and closed outputs: an error of one line each."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import ROOT, refused, saved_run

from flax_resnet import create_model, load, main
from flax_resnet.cli import app, commands, env
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan
from flax_resnet.errors import CheckpointError, ConfigError, recognized
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.load import chosen_step

SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}


@pytest.fixture
def run(tmp_path):
    return saved_run(tmp_path / "run", {"model": SHAPE}, [str(n) for n in range(10)], step=3)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "image_size", 10**9),
        ("data", "eval_size", 10**9),
        ("data", "progressive", ((0, 10**9),)),
        ("train", "eval_batch_size", 10**20),
    ],
)
def test_a_size_that_no_tensor_can_have_is_refused(section, key, value):
    with refused(f"{section}.{key}", value, ConfigError):
        freeze({section: {key: value}})


@pytest.mark.parametrize(("key", "value"), [("steps", 10**21), ("epochs", 10**6)])
def test_a_run_with_more_steps_than_a_counter_can_hold_is_refused(key, value):
    with refused(f"train.{key}", value, ConfigError):
        config = freeze({"train": {key: value}})
        plan(config, num_train=10**6, num_eval=10, num_classes=10)


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"eval_every": 1e38, "checkpoint_every": 1e38}},
        {"schedule": {"name": "multi_step", "milestones": (1e38,)}},
    ],
)
def test_a_position_far_after_the_end_is_never_reached(sections):
    made = plan(freeze(sections), num_train=1000, num_eval=10, num_classes=10)
    assert made.eval_every >= made.total_steps or min(made.milestones) >= made.total_steps


def test_a_warm_up_far_longer_than_the_run_is_refused():
    config = freeze({"schedule": {"warmup": 1e38}})
    with refused("schedule.warmup", 1e38, ConfigError):
        plan(config, num_train=1000, num_eval=10, num_classes=10)


@pytest.mark.parametrize(
    ("section", "key", "value", "shown"),
    [
        ("optimizer", "unfreeze_at", (("fc", 1e38),), ("fc", 1e38)),
        ("data", "progressive", ((0.0, 4), (1e38, 8)), ...),
    ],
)
def test_a_start_far_after_the_end_is_refused(section, key, value, shown):
    config = freeze({section: {key: value}})
    with refused(f"{section}.{key}", shown, ConfigError):
        plan(config, num_train=1000, num_eval=10, num_classes=10)


def test_milestones_must_be_finite():
    milestones = (1.0, float("inf"))
    with refused("schedule.milestones", milestones, ConfigError):
        freeze({"schedule": {"name": "multi_step", "milestones": milestones}})


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--batch_size=99999999999999999999"],
        ["evaluate", "--image_size=99999999"],
        ["probe", "--batch_size=99999999999999999999"],
        ["probe", "--image_size=99999999"],
    ],
)
def test_a_flag_with_a_size_that_no_tensor_can_have_is_refused(run, arguments, capsys):
    assert commands.main([*arguments, f"--workdir={run}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {arguments[1]}: ")


HUGE = ("1e308", str(2**63), str(10**30), "1" + "0" * 5000, "nan", "inf", "-1e308")


@pytest.mark.parametrize("value", HUGE, ids=lambda value: value[:6])
@pytest.mark.parametrize(
    "flags",
    [
        *(["summary", "--model=resnet18", f"--{n}"] for n in ("image_size", "batch_size", "depth")),
        *(["summary", "--model=resnet18", f"--{n}"] for n in ("num_classes", "in_channels")),
        *(["prepare", "--name=mnist", "--pack=small", f"--{n}"] for n in ("threads", "max_side")),
        ["prepare", "--name=mnist", "--pack=small", "--max_bad"],
    ],
    ids=lambda flags: flags[-1],
)
def test_a_huge_number_of_a_flag_is_one_line(flags, value, capsys):
    assert commands.main([*flags[:-1], f"{flags[-1]}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flags[-1]}=")


@pytest.mark.parametrize("value", [1e308, 10**30, 10**400, 5e-324, float("nan")])
@pytest.mark.parametrize("option", ["num_classes", "stem_width", "norm_epsilon", "drop_path"])
def test_a_number_that_training_cannot_hold_is_no_option(option, value):
    with refused(f"model.{option}", kind=ConfigError):
        create_model("resnet50", **{option: value})


def test_a_prediction_needs_a_batch_size_that_exists(run):
    with refused("batch_size", 10**30, ConfigError):
        load(run).predict([], batch_size=10**30)


@pytest.mark.parametrize("name", ["²", "٣", "03", "", "3" * 5000])
def test_the_name_of_a_checkpoint_must_equal_its_folder(run, name):
    with refused("checkpoint", name, CheckpointError):
        chosen_step(Checkpoints(run, read_only=True), name)


@pytest.mark.parametrize("name", ["", "a b", "$x", "a\nb"])
def test_an_impossible_dataset_name_is_refused(name, capsys):
    assert main.main(["--config=resnet18", f"--config.data.name={name}", "--dry_run"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: data.name={name!r}: must be name, name/config or name:version")


def test_env_reports_an_unreadable_cache_and_continues(monkeypatch):
    def deny(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "is_dir", deny)
    assert "cannot be read: [Errno 13]" in dict(env.facts("/locked"))["compiled programs"]


def test_a_file_in_place_of_the_cache_is_refused(run, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    assert commands.main(["evaluate", f"--workdir={run}", f"--compilation_cache={file}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --compilation_cache={file}: is a file; must be a folder, or off"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3200000000000 bytes."),
        Exception("OOM when allocating tensor with shape[1,200000,200000,3]"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line_with_remedies(error, capsys):
    def fail(values):
        raise error

    assert app.run("test", "", lambda values, argv: None, fail, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory: is too small: ")
    assert "train.microbatch_size=auto" in line


def test_other_errors_are_bugs_and_not_recognized():
    assert recognized(RuntimeError("shapes do not match: zoom 3")) is None


def test_a_command_works_with_a_closed_standard_output(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.stdout", None)
    output = tmp_path / "layers.txt"
    assert commands.main(["summary", "--model=resnet18", f"--output={output}"]) == 0
    assert commands.main(["env"]) == 0
    assert "total parameters" in output.read_text()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["settings"], ["--version"]])
def test_an_output_on_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = buffered(arguments, stdout=full)
    assert done.returncode == 5
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: standard output: ")


@pytest.mark.parametrize("arguments", [["settings"], ["--version"]])
def test_an_output_that_nobody_reads_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = buffered(arguments, stdout=writer)
    os.close(writer)
    assert done.returncode == 141
    assert not done.stderr


def buffered(arguments, stdout):
    """The ended process of a command whose output is buffered, as is usual."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "flax_resnet", *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
