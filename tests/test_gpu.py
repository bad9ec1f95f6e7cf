"""The command that measures on GPUs: what it plans, what it keeps, and how it ends without one."""

import argparse
import json
import pathlib
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu import FULL, Part


@pytest.mark.parametrize(
    ("gpus", "counts"), [(0, [0]), (1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_one_two_four_and_all_gpus(gpus, counts, tmp_path):
    args = argparse.Namespace(folder=tmp_path, cifar="", rehearse=False)
    planned = list(gpu.parts(args, FULL, gpus, tmp_path / "photographs"))
    once = ["peers", "profile"] if gpus else ["peers"]
    by_count = planned[: -len(once)]
    assert [part.gpus for part in by_count] == [count for count in counts for _ in range(2)]
    assert [part.name for part in planned[len(by_count) :]] == once
    last = by_count[-1].command
    assert f"--config.train.batch_size={256 * max(1, gpus)}" in last


def test_what_is_finished_is_kept_and_reported(tmp_path, monkeypatch, capfd):
    """A module of its own that writes its record, and its GPUs; the second run finds it done."""
    (tmp_path / "fake.py").write_text(
        "import os, json, sys\n"
        "print('GPUs', os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['JAX_PLATFORMS'])\n"
        "where = sys.argv[-1].removeprefix('--output=')\n"
        "json.dump({'device': '2 x fake'}, open(where, 'w'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    part = Part("fake_2", 2, ["fake", "--of", "two words"])
    gpu.run(part, tmp_path)
    assert "GPUs 3,5 cuda" in capfd.readouterr().out
    assert json.loads((tmp_path / "fake_2.json").read_text()) == {"device": "2 x fake"}
    gpu.run(part, tmp_path)
    assert capfd.readouterr().out == ""
    report = gpu.written([part], tmp_path)
    assert "On 2 x fake." in report
    assert "`python -m fake --of 'two words'`" in report
    assert "GPUs 3,5 cuda" in (tmp_path / "report.md").read_text()


def test_a_command_that_fails_ends_all_and_is_not_kept(tmp_path, capfd):
    with pytest.raises(SystemExit) as stopped:
        gpu.run(Part("nothing", 0, ["benchmarks.nothing"]), tmp_path)
    assert stopped.value.code == 1
    assert not (tmp_path / "nothing.json").exists()
    assert "error: nothing ended with 1; " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "gpus", "message"),
    [
        ([], "raise", "no GPU: JAX sees none; needed: an NVIDIA GPU"),
        (["--cifar=nowhere"], 1, "--cifar=nowhere: must be a folder with train/ and test/"),
    ],
)
def test_a_mistake_is_one_line(arguments, gpus, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", f"--folder={tmp_path}", *arguments])
    if gpus == "raise":  # as where JAX is told to use the CPU
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    else:
        monkeypatch.setattr(gpu, "visible_gpus", lambda: gpus)
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(pathlib.Path(tmp_path).iterdir())
