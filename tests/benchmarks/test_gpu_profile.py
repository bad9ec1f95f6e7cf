"""Times of a profile put beside the bytes of its program, on a small one; and a machine without a GPU."""

import json
import sys

import pytest
from conftest import ROOT
from PIL import Image
from program_text import IMAGES, KERNEL, MAP, STEP

from benchmarks.lab import hlo
from benchmarks.speed import gpu_profile
from benchmarks.speed.gpu_profile import OTHER, Run
from benchmarks.speed.workloads import Work

RESULTS = ROOT / "benchmarks" / "results"


def test_times_and_bytes_of_kernels():
    runs = [
        # A library's convolution is three kernels, and moves its arrays once.
        Run("conv", "pad_channels", 1000.0, 1.0),
        Run("conv", "cutlass_fprop", 5000.0, 1.0),
        Run("conv", "cutlass_reduce", 1000.0, 1.0),
        # Of fusions that are alike and launched together, all have the first one's name.
        Run("command_buffer_7", "z_1", 600.0, 2.0),
        Run("z.1", "z_1", 300.0, 1.0),  # whatever it is launched with
        Run("", "memcpy128", 100.0, 4.0),
    ]
    found = gpu_profile.rows(runs, hlo.parse(STEP.replace("%z", "%z.1")))
    conv, maximum, copy = found
    assert (conv.name, conv.kind, conv.runs) == ("conv", "convolution", 3)
    assert conv.seconds == pytest.approx(7e-6)
    assert conv.bytes == 2 * (IMAGES + KERNEL + MAP)
    assert (maximum.name, maximum.kind, maximum.runs) == ("z.1", "elementwise", 3)
    assert maximum.bytes == 3 * (2 * 2 * MAP + 4 * 16)
    assert maximum.behind(1e12) == pytest.approx(0.9e-6 - maximum.bytes / 1e12)
    assert (copy.kind, copy.runs, copy.bytes) == (OTHER, 4, 0)


def test_a_record_is_read_again_and_drawn(tmp_path, monkeypatch, capsys):
    rows = [
        gpu_profile.Row("conv", "convolution", "layer1/conv1", 3, 7e-6, 2_000_000),
        gpu_profile.Row("z.1", "elementwise", "layer1/relu", 1, 1e-6, 900_000),
    ]
    record = {
        "device": "1 x GPU",
        **Work("resnet18")._asdict(),
        "seconds": 9e-6,
        "bandwidth": 1e12,
        "kernels": [row._asdict() for row in rows],
    }
    file, picture = tmp_path / "profile.json", tmp_path / "profile.png"
    file.write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["gpu_profile", f"--read={file}", f"--plot={picture}"])
    gpu_profile.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        "resnet18, 224 px, batch 16, float32, 1 x GPU",
        "0.01 ms a step; 0.01 ms of kernels, under the profiler",
    ]
    assert "convolution                   3     0.01   87.5%    0.00   0.29" in printed
    assert printed[-2].endswith("conv layer1/conv1")  # furthest behind first
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100


@pytest.mark.parametrize(
    ("arguments", "fault", "name"),
    [
        ([], "device='cpu'", "GPU"),
        (["--read", "nowhere.json"], "--read=nowhere.json", "exists"),
        (["--read", "setup.cfg"], "--read=setup.cfg", ""),
        (["--read", f"{RESULTS}/h100_vs_torch.json"], f"--read={RESULTS}/h100_vs_torch.json", ""),
        (["--read", "DAMAGED"], "--read=DAMAGED", "'model'"),
        (["--model", "resnet19"], "model.name='resnet19'", "'resnet18'"),
    ],
)
def test_a_mistake_is_one_line(arguments, fault, name, tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"device": "1 x GPU", "kernels": []}')
    arguments = [text.replace("DAMAGED", str(damaged)) for text in arguments]
    monkeypatch.setattr(sys, "argv", ["gpu_profile", *arguments])
    assert gpu_profile.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {fault.replace('DAMAGED', str(damaged))}: ")
    assert name in line
