"""The benchmark of networks: what it counts, what it does where a batch does not fit, and a real run."""

import argparse
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, refused

from benchmarks.arguments import output
from benchmarks.speed import model_speed, roofline
from benchmarks.speed.workloads import Work
from flax_resnet.models.summary import summarize


def test_cost_counts_two_operations_a_multiply_add_and_three_passes():
    summary = summarize("resnet18", batch_size=4)
    endless = roofline.Limits(flops=1e12, bandwidth=1e30)
    infer = roofline.cost(summary, endless, train=False)
    assert infer.flops == 2 * 4 * summary.macs
    assert infer.seconds == pytest.approx(infer.flops / 1e12)
    stem = 2 * 4 * 112 * 112 * 64 * 7 * 7 * 3
    assert roofline.cost(summary, endless, train=True).flops == 3 * infer.flops - stem


def test_cost_is_traffic_where_memory_is_slow():
    summary = summarize("resnet20", dtype="bfloat16")
    slow = roofline.Limits(flops=1e30, bandwidth=2.0)  # one bfloat16 a second
    maps = 32 * 32 * 16 * 7 + 16 * 16 * 32 * 6 + 8 * 8 * 64 * 6  # its shortcuts have no parameters
    kernels = sum(layer.parameters for layer in summary.layers if layer.macs)
    expected = 2 * (maps + 10) + kernels
    assert roofline.cost(summary, slow, train=False).seconds == pytest.approx(expected)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, capsys):
    def measured(work, rounds, seconds):
        if work.batch_size > 16:
            raise MemoryError
        return {}

    monkeypatch.setattr(model_speed, "measured", measured)
    work, _ = model_speed.fitting(Work("resnet18", batch_size=64), 1, 1.0)
    assert work.batch_size == 16
    assert "a batch of 64 does not fit into memory: trying 32" in capsys.readouterr().out


def test_a_network_of_which_not_one_image_fits_is_refused(monkeypatch):
    def measured(work, rounds, seconds):
        raise MemoryError

    monkeypatch.setattr(model_speed, "measured", measured)
    with refused("--models", "resnet18"):
        model_speed.fitting(Work("resnet18", batch_size=64), 1, 1.0)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--models", "resnet19"], ["model.name='resnet19': ", "'resnet1"]),
        (["--batch_size", "0"], ["--batch_size=0: "]),
        (["--seconds", "nan"], ["--seconds=nan: "]),
        (["--batch_size", "12"], ["--batch_size=12: ", "8 devices"]),
    ],
)
def test_a_mistake_is_one_line(arguments, names, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["model_speed", *arguments])
    monkeypatch.setattr(model_speed, "prepare_cpu", lambda: None)
    assert model_speed.main() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for name in names:
        assert name in line


@pytest.mark.slow
def test_a_run_on_two_devices(tmp_path):
    command = [sys.executable, "-m", "benchmarks.speed.model_speed", "--models", "resnet20"]
    command += ["--batch_size", "8", "--rounds", "1", "--seconds", "0.01"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    output = tmp_path / "speed.json"
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT, env=os.environ | flags, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert record["device"] == "2 x cpu (cpu)"
    (result,) = record["results"]
    assert set(result["parts"]) == {"inference", "forward", "gradient", "optimizer", "step"}
    for part in result["parts"].values():
        assert part["images_per_second"] == pytest.approx(8 / part["seconds"])


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    assert output(str(tmp_path / "new" / "result.json"))
    (tmp_path / "file").touch()
    for wrong in (tmp_path, tmp_path / "file" / "result.json"):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            output(str(wrong))
        assert str(caught.value).startswith(f"{wrong}: ")
