"""The summary: multiply-adds and parameters against published counts, formats, and wrong input."""

import csv
import io
import json
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT, refused

from flax_resnet.cli import commands, summary
from flax_resnet.cli.summary import format_table
from flax_resnet.errors import ConfigError
from flax_resnet.models.summary import collapsed, summarize, totals

# Multiply-adds at 224 px (32 behind a cifar stem), convolutions and linear layers alone, as torchvision
# counts them for its weights; the others by plain arithmetic over the architectures.
GMACS = {
    "resnet18": "1.814", "resnet50": "4.089", "resnet152": "11.514", "resnet50d": "4.329",
    "resnet50s": "5.444", "resnet26t": "2.550", "resnext50_32x4d": "4.230", "resnext101_64x4d": "15.460",
    "wide_resnet50_2": "11.398", "seresnet50": "4.092", "senet154": "20.688", "ecaresnet269d": "20.270",
    "resnetrs50": "4.454", "resnetrs420": "31.363", "resnetv2_50x1_bit": "4.089", "resnetv2_152x4_bit": "182.8",
    "resnet20": ".0406", "resnet56": ".1255", "resnet110": ".2529", "wrn28_10": "5.24", "resnet18_cifar": ".555",
    "vgg11": "7.609", "vgg16": "15.470", "alexnet": ".714",
}  # fmt: skip


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds_and_parameters(name):
    summary = summarize(name)
    digits = len(GMACS[name].partition(".")[2])
    assert round(summary.macs / 1e9, digits) == float(GMACS[name])
    assert summary.parameters == sum(layer.parameters for layer in summary.layers)
    assert summary.macs == sum(layer.macs for layer in summary.layers)


def test_not_even_a_device_is_needed():
    # The first array, however short-lived, would look for this platform and fail.
    command = [sys.executable, "-m", "flax_resnet", "summary", "--model=resnetv2_152x4_bit"]
    nowhere = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=nowhere
    )
    assert "936,533,224" in done.stdout


def test_the_table_of_resnet18():
    summary = summarize("resnet18", batch_size=2)
    table = format_table(summary, summary.layers)
    lines = table.splitlines()
    assert "resnet18, images [2, 224, 224, 3], float32" in lines[0]
    assert lines[4].split() == [
        "conv1",
        "Conv",
        "7x7/2",
        "[2,",
        "112,",
        "112,",
        "64]",
        "9,408",
        "118,013,952",
    ]
    assert "total parameters" in table
    assert "11,689,512" in table
    assert "9,600" in table
    assert "1.814 G" in table
    assert f"{2 * 224 * 224 * 3 * 4 / 2**20:,.2f} MB" in table
    assert "44.59 MB" in table  # what torchsummary says of the parameters
    outputs = sum(math.prod(layer.output_shape) for layer in summary.layers)
    assert summary.activation_size == 2 * 4 * outputs
    assert summarize("resnet18", batch_size=2, dtype="bfloat16").activation_size == 2 * 2 * outputs
    assert not any(line.endswith(" ") for line in lines)


def test_float64_is_float64():
    single, double = summarize("resnet20"), summarize("resnet20", dtype="float64")
    assert double.parameter_size == 2 * single.parameter_size
    assert double.activation_size == 2 * single.activation_size


@pytest.mark.parametrize("wrong", [{"image_size": -1}, {"batch_size": 0}, {"batch_size": "8"}])
def test_sizes_are_whole_numbers(wrong):
    ((key, value),) = wrong.items()
    with refused(key, value, ConfigError):
        summarize("resnet18", **wrong)


def test_layers_say_what_they_are():
    kinds = {layer.name: layer.kind for layer in summarize("seresnext50_32x4d").layers}
    assert kinds["layer2_0/conv2"] == "Conv 3x3/2, 32 groups"
    assert kinds["layer2_0/bn2"] == "BatchNorm"
    assert kinds["layer2_0/se/fc1"] == kinds["fc"] == "Linear"
    dilated = {x.name: x.kind for x in summarize("resnet50", output_stride=16).layers}
    assert dilated["layer4_1/conv2"] == "Conv 3x3, dilation 2"
    assert {x.kind for x in summarize("resnetv2_50d_frn").layers} > {"FilterResponseNorm"}


def test_collapsed_layers_keep_the_sums():
    layers = summarize("resnet50").layers
    blocks = collapsed(layers, 1)
    assert [b.name for b in blocks[:3]] == ["conv1", "bn1", "layer1_0"]
    assert len(blocks) == 16 + 3
    assert blocks[2].output_shape == (1, 56, 56, 256)
    assert sum(b.macs for b in blocks) == sum(x.macs for x in layers)
    # The gates of channel attention are vectors; a block's output is a map.
    assert collapsed(summarize("seresnet18").layers, 1)[2].output_shape == (1, 56, 56, 64)


def test_formats_agree(capsys, tmp_path):
    arguments = ["summary", "--model=resnet20", "--num_classes=7", "--image_size=40"]
    assert commands.main([*arguments, "--format=json"]) == 0
    from_json = json.loads(capsys.readouterr().out)
    assert from_json["input_shape"] == [1, 40, 40, 3]
    assert from_json["parameters"] == totals(summarize("resnet20", 40, num_classes=7))["parameters"]
    assert commands.main([*arguments, "--format=csv", f"--output={tmp_path / 'rows.csv'}"]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [int(r["macs"]) for r in rows] == [r["macs"] for r in from_json["rows"]]
    assert rows[-1]["output_shape"] == "1x7"


def test_a_list_of_networks(capsys):
    assert commands.main(["summary", "--list=*eresnet18"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "model",
        "image",
        "size",
        "parameters",
        "running",
        "statistics",
        "multiply-adds",
    ]
    assert row.split() == ["seresnet18", "224", "11,779,624", "9,600", "1.814", "G"]
    assert commands.main(["summary", "--list=resnet20*", "--format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["model"], r["image_size"]) for r in rows] == [
        ("resnet20", 32), ("resnet200", 224), ("resnet200d", 224),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--model", "--list", "--schedule"]),
        (["--model=resnet18", "--list=*"], ["--list=*", "--model=resnet18"]),
        (["--model=resnet81"], ["model.name='resnet81'", "'resnet18'"]),
        (["--list=*resnet81*"], ["--list=*resnet81*", "'resnet18'"]),
        (["--list=nothing*"], ["--list=nothing*"]),
        (["--model=vgg11", "--image_size=16"], ["images=(1, 16, 16, 3)"]),
        (["--model=vgg11", "--image_size=8"], ["images", "map of 0x0"]),
        (["--model=alexnet", "--image_size=1"], ["images", "11x11", "map of 1x1"]),
        (["--list=vgg1?", "--image_size=8"], ["images", "vgg11", "map of 0x0"]),
        (["--model=resnet18", "--image_size=-1"], ["--image_size=-1"]),
        (["--model=resnet18", "--batch_size=0"], ["--batch_size=0"]),
        (["--model=resnet18", "--dtype=int8"], ["model.dtype='int8'"]),
        (["--model=resnet18", "--format=jsn"], ["--format=jsn", "'json'"]),
        (["--model=resnet18", "--deep=1"], ["--deep", "depth"]),
        (["--model=resnet18", "--num_train=9"], ["--num_train", "--schedule", "--model"]),
        (["--model=resnet18", "--config=resnet18"], ["--config", "--schedule", "--model"]),
        (["--list=resnet18", "--data_dir=x"], ["--data_dir", "--schedule", "--list"]),
        (["--list=resnet18", "--depth=1"], ["--depth", "--model", "--list"]),
        (
            ["--schedule=rate.png", "--config=resnet18", "--image_size=0"],
            ["--image_size", "--model", "--list", "--schedule"],
        ),
    ],
)
def test_wrong_input_is_one_line(arguments, parts, capsys):
    assert commands.main(["summary", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {parts[0]}")
    for part in parts:
        assert part in line


def test_an_output_that_cannot_be_written_is_one_line(capsys):
    assert commands.main(["summary", "--model=resnet18", "--output=/nowhere/table"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /nowhere/table: ")


def test_scanned_networks_are_not_shown():
    with refused("model.scan_blocks", value=True, kind=ConfigError):
        summarize("resnet50", scan_blocks=True)


@pytest.mark.parametrize(
    ("command", "reader", "seen"),
    [
        ("summary --model resnet152", "head -n 1", "resnet152"),
        ("summary --model resnet18", "true", ""),
        ("--help", "true", ""),
    ],
    ids=["stops early", "gone before a table that fits the buffer", "gone before a list"],
)
def test_a_reader_that_stops_early_is_no_error(command, reader, seen):
    command = f"{sys.executable} -m flax_resnet {command} | {reader}"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=buffered, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(seen)
    assert done.stderr == ""


def test_the_schedule_is_drawn(tmp_path, capsys):
    output = tmp_path / "rate.png"
    command = ["--config=resnet50_mlperf", f"--schedule={output}"]
    assert summary.main([*command, "--num_train=1281167"]) == 0
    assert output.stat().st_size > 10_000
    for flags, parts in (
        ([*command, "--num_train=100"], ["train.batch_size=3200", "100"]),
        ([f"--schedule={output}"], ["--config"]),
        ([*command, "--model=resnet18"], ["--model=resnet18", f"--schedule={output}"]),
        (["--config=resnet50_mlperf", "--schedule=rate.txt"], ["--schedule=rate.txt", ".png"]),
    ):
        capsys.readouterr()
        assert summary.main(flags) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        for part in parts:
            assert part in error[0]
