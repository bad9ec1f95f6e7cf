"""What the benchmarks share: a mistake is one line, paths are checked first, and a full disk loses nothing."""

import argparse
import json
import pathlib
import signal
import sys

import pytest
from conftest import ROOT, refused

from benchmarks import app, record
from benchmarks.accuracy import torch_run
from benchmarks.arguments import batch_size, existing, folder, output, place
from benchmarks.gpu import record as gpu_records
from benchmarks.lab import architecture, gpu_program, same_bits, stacked_blocks
from benchmarks.speed import gpu_profile, vs_torch
from flax_resnet.config import freeze
from flax_resnet.errors import DivergedError, OutputError

LONG = "x" * 300
HOLD_NOTHING = pathlib.Path("/proc")  # in which root, too, can make nothing


@pytest.mark.parametrize("read", [output, folder, existing, place])
@pytest.mark.parametrize("text", ["", LONG, f"nowhere/{LONG}", "~nobody_of_this_name/file"])
def test_a_path_that_there_cannot_be_is_refused(read, text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    assert str(caught.value).startswith(f"{text}: must be ")


@pytest.mark.skipif(not HOLD_NOTHING.is_dir(), reason="needs /proc")
@pytest.mark.parametrize("read", [output, folder])
def test_what_only_seems_writable_is_refused(read):
    with pytest.raises(argparse.ArgumentTypeError):
        read(str(HOLD_NOTHING / "new"))


def test_the_home_folder_is_written_as_in_a_shell(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder("~/runs") == tmp_path / "runs"
    assert output("~/a.json") == str(tmp_path / "a.json")


def test_a_batch_is_one_that_training_takes():
    assert batch_size("65536") == 65_536
    for text in ("0", "65537", "-1", "1e3", "²", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            batch_size(text)


@pytest.mark.parametrize(
    ("main", "arguments", "start"),
    [
        (stacked_blocks.main, ["--model", "resnet19"], "model.name='resnet19': "),
        (stacked_blocks.main, ["--batch_size", "99999999"], "--batch_size=99999999: must be "),
        (stacked_blocks.main, ["--remat", "all"], "--remat=all: must be one of "),
        (stacked_blocks.main, ["--steps"], "--steps: "),
        (stacked_blocks.main, ["--nothing"], "unrecognized arguments: --nothing; see --help"),
        (vs_torch.main, ["--works", "resnet19"], "--works=resnet19: must be one of "),
        (gpu_profile.main, ["--read", LONG], f"--read={LONG}: must be "),
        (same_bits.main, [], "--before: is needed"),
        (same_bits.main, ["--before", "no such"], "--before=no such: must be a revision"),
        (same_bits.main, ["--before", "a\nb"], "--before=a b: must be a revision"),
        (same_bits.main, ["--before", ".", "--cases", "no"], "--cases=no: must be one of "),
        (same_bits.main, ["--before", ".", "--folder", "."], "--folder=.: holds something; "),
        (architecture.main, ["--output", "a.txt"], "--output=a.txt: must be "),
        (architecture.main, ["--output", LONG + ".png"], f"--output={LONG}.png: must be "),
    ],
)
def test_a_mistake_is_one_line(main, arguments, start, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {start}")


def test_a_revision_is_its_commit():
    assert same_bits.commit(".") == "."
    assert same_bits.commit("HEAD") == same_bits.commit("HEAD^{commit}") != "HEAD"


def test_a_revision_without_the_configuration_is_named(tmp_path):
    with refused(tmp_path / same_bits.CONFIG) as caught:
        list(same_bits.known_keys(tmp_path))
    assert "No such file" in caught.value.problem


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DivergedError("not finite", key="loss"), 3, "error: loss: not finite\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted\n"),
    ],
)
def test_the_exit_code_is_that_of_the_error(raised, code, said, capsys):
    @app.command
    def main():
        raise raised

    assert main() == code
    assert capsys.readouterr().err == said


def fill_disk(monkeypatch):
    def write_text(self, text):
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", write_text)


def test_a_full_disk_leaves_the_former_record(tmp_path, monkeypatch):
    file = tmp_path / "new" / "found.json"
    monkeypatch.setattr(record, "environment", dict)
    record.write_record(str(file), {"speed": 1})
    before = file.read_text()
    fill_disk(monkeypatch)
    with refused(file, kind=OutputError) as caught:
        record.write_record(str(file), {"speed": 2})
    assert "No space left" in caught.value.problem
    assert file.read_text() == before


def test_a_full_disk_leaves_the_record_of_a_stage(tmp_path, monkeypatch):
    file = tmp_path / "stage.json"
    recorder = gpu_records.Recorder(file, "stage")
    recorder.measure("speed", [1.0], "ms")
    fill_disk(monkeypatch)
    with refused(file, kind=OutputError):
        recorder.measure("more", [1.0], "ms")
    assert [one.name for one in gpu_records.read_stage(file).measurements] == ["speed"]


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"jax": "1"}', '{"jax": "1", "programs": [3]}'])
def test_expected_figures_that_are_none_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_program, "EXPECTED", tmp_path / "expected.json")
    gpu_program.EXPECTED.write_text(text)
    with refused(gpu_program.EXPECTED) as caught:
        gpu_program.load_expected()
    assert "--store" in caught.value.cure


class Diverging:
    def __init__(self, *about):
        pass

    def step(self, number):
        return {"loss": float("nan") if number else 1.0, "top1": 0.0}


def test_divergence_has_the_words_of_training(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_run, "Training", Diverging)
    crops = {"train_crop": "resize", "eval_crop": "resize", "eval_fraction": 0.4}
    config = freeze({
        "model": {"name": "resnet20"},
        "data": {"source": "folder", "path": str(photographs), "image_size": 32, **crops},
        "train": {"batch_size": 2, "epochs": 1},
        "schedule": {"warmup": 0},
    })  # fmt: skip
    with refused("loss", kind=DivergedError) as caught:
        torch_run.train(config, tmp_path / "run")
    assert str(caught.value) == "loss=nan: not finite at step 2"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bandwidth",), 0),
        (("seconds",), 10**400),
        (("device",), 3),
        (("kernels", 0, "seconds"), None),
        (("kernels", 0, "bytes"), float("nan")),
        (("kernels", 0, "what"), {}),
        (("kernels",), [3]),
        (("kernels",), None),
    ],
)
def test_a_damaged_profile_is_refused(path, value, tmp_path):
    values = json.loads((ROOT / "benchmarks" / "results" / "h100_profile.json").read_text())
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(values))
    gpu_profile.table(gpu_profile.read(file))
    *outer, last = path
    place = values
    for key in outer:
        place = place[key]
    place[last] = value
    file.write_text(json.dumps(values))
    with refused("--read", str(file)):
        gpu_profile.read(file)
