"""The evaluation of several networks into one table: names and patterns, rows, what fails, and resuming."""

import csv
import json
import shutil

import pytest
from conftest import refused
from weights_by_name import SMALLEST, tensors_for

from flax_resnet.cli import commands
from flax_resnet.errors import ConfigError, DataError, WeightsError
from flax_resnet.inference import several_models, throughput
from flax_resnet.inference.classifier import load_pretrained
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.inference.several_models import read_names, select_models
from flax_resnet.models.summary import summarize
from flax_resnet.weights import write_safetensors

SIZE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files with the weights of a network with two classes, and one with three."""
    folder = tmp_path_factory.mktemp("models")
    about = {"input_size": [3, SIZE, SIZE], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    for tag, classes in (("a", 2), ("b", 2), ("odd", 3)):
        file = folder / f"{SMALLEST}.{tag}.safetensors"
        tensors = tensors_for(SMALLEST, num_classes=classes)
        write_safetensors(file, {name: x * (1 + (tag == "b")) for name, x in tensors.items()})
        config = {"architecture": SMALLEST, "num_classes": classes, "pretrained_cfg": about}
        file.with_suffix(".json").write_text(json.dumps(config))
    return folder


def rows_of(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_each_network_gives_a_row_and_what_fails_is_named_and_tried_again(
    folder, photographs, tmp_path, cache_dir, capsys
):
    models = tmp_path / "models"
    shutil.copytree(folder, models)
    names, output = tmp_path / "names.txt", tmp_path / "out" / "table.csv"
    names.write_text(f"# the smallest ones\n{SMALLEST}.odd\n\n{SMALLEST}.gone\n{SMALLEST}.[a]\n")
    command = [
        "evaluate", f"--models={names}", f"--weights={models}", f"--dataset={photographs}",
        f"--output={output}", f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    assert commands.main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    for tag in ("odd", "gone"):
        assert sum(x.startswith(f"warning: {SMALLEST}.{tag}: ") for x in lines) == 1
        assert f"{SMALLEST}.{tag}" in lines[-1]
    assert lines[-1].startswith(f"error: --models={names}: ")
    rows = rows_of(output)
    (row,) = rows
    name = f"{SMALLEST}.a"
    file = models / f"{name}.safetensors"
    expected = {"model": name, "weights": str(file), "dataset": str(photographs), "count": "12"}
    assert {key: row[key] for key in expected} == expected
    images = sorted(photographs.rglob("*.jpg"))
    guesses = load_pretrained(name, weights=file).predict(images).labels
    right = sum(
        guess == (f.parent.name == "flower") for guess, f in zip(guesses, images, strict=True)
    )
    assert float(row["top1"]) == pytest.approx(right / 12)
    assert (float(row["top1_low"]), float(row["top1_high"])) == proportion_interval(right, 12)
    summary = summarize(SMALLEST, SIZE, num_classes=2)
    found = [int(row[key]) for key in ("parameters", "multiply_adds", "image_size")]
    assert found == [summary.parameters, summary.macs, SIZE]
    assert float(row["images_per_second"]) > 0
    shutil.copy(folder / f"{SMALLEST}.a.safetensors", models / f"{SMALLEST}.odd.safetensors")
    shutil.copy(folder / f"{SMALLEST}.a.json", models / f"{SMALLEST}.odd.json")
    assert commands.main([*command, "--append"]) == 2
    assert [row["model"].rpartition(".")[2] for row in rows_of(output)] == ["a", "odd"]
    assert rows_of(output)[:1] == rows  # not evaluated again
    names.write_text(f"{SMALLEST}.odd\n{SMALLEST}.a\n")
    assert commands.main([*command, "--append"]) == 0
    assert len(rows_of(output)) == 2


def test_rows_are_in_the_file_at_once_and_belong_to_one_dataset(
    folder, photographs, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "table.jsonl"
    seen = []

    def row(name, choice, *, weights, **options):
        lines = output.read_text().splitlines()
        seen.append([json.loads(line)["model"].rpartition(".")[2] for line in lines])
        if len(seen) == 3:
            raise KeyboardInterrupt
        values = dict.fromkeys(several_models.COLUMNS, 1)
        return values | {"model": name, "weights": weights, "dataset": choice.dataset}

    monkeypatch.setattr(several_models, "model_row", row)
    command = ["evaluate", "--model=*", f"--weights={folder}", f"--output={output}"]
    here = f"--dataset={photographs}"
    assert commands.main([*command, here]) == 130
    assert seen == [[], ["a"], ["a", "b"]]
    capsys.readouterr()
    for others in (
        ["--dataset=digits"],
        [here, "--image_size=64"],
        [here, f"--weights={tmp_path}"],
    ):
        (tmp_path / f"{SMALLEST}.a.safetensors").touch()
        assert commands.main([*command, "--append", *others]) == 4
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --output={output}: ")
    assert len(seen) == 3
    with output.open("a") as opened:
        opened.write('{"model": "torn')
    assert commands.main([*command, here, "--append"]) == 0
    assert seen[3:] == [["a", "b"]]
    assert [json.loads(x)["model"][-1] for x in output.read_text().splitlines()] == [*"abd"]


def test_patterns_are_compared_with_all_names_of_timms_weights():
    names = select_models(["resnet18*", "resnet18.a1_in1k", "mine"], "", "--model").names
    assert "resnet18.a1_in1k" in names
    assert "resnet18d.ra2_in1k" in names
    assert all(name.startswith("resnet18") for name in names[:-1])
    assert names == (*sorted(names[:-1]), "mine")
    with refused("--models", "resnt50*", ConfigError) as caught:
        select_models(["resnet18*", "resnt50*"], "", "--models")
    assert "resnet50" in caught.value.cure


def test_a_folder_of_weights_has_the_names_of_its_files(tmp_path):
    for name in ("b.safetensors", "a.pth.tar", "a.json", "b.bin", "notes.txt", "c.x.npz"):
        (tmp_path / name).touch()
    found = select_models(["*"], str(tmp_path), "--model")
    assert found.names == ("a", "b", "c.x")
    assert found.file_of("b") == str(tmp_path / "b.safetensors")
    with refused("--weights", str(tmp_path), WeightsError):
        found.file_of("d")
    one = tmp_path / "b.bin"
    assert select_models(["c"], str(one), "--model").file_of("c") == str(one)
    for texts in (["*"], ["b", "c"]):
        with refused("--weights", str(one), WeightsError):
            select_models(texts, str(one), "--model")


def test_a_file_of_names_has_some(tmp_path):
    file = tmp_path / "names.txt"
    with refused("--models", str(file), DataError):
        read_names(str(file), "--models")
    file.write_text("# none\n\n")
    with refused("--models", str(file), DataError):
        read_names(str(file), "--models")
    file.write_bytes(b"\xef\xbb\xbf one \r\ntwo*\r\n")
    assert read_names(str(file), "--models") == ["one", "two*"]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--model=a*", "--models=names"], "--models=names"),
        (["--workdir=run", "--output=table.csv"], "--output=table.csv"),
        (["--workdir=run", "--append"], "--append=True"),
        (["--model=a*", "--append"], "--append"),
        (["--model=a*", "--confusion=x.csv"], "--confusion=x.csv"),
        (["--model=a*", "--output=x.parquet"], "--output=x.parquet"),
        (["--model=a*", "--checkpoint=best"], "--checkpoint=best"),
        (["--model=zzz*", "--dataset=digits"], "--model=zzz*"),
        (["--model=resnet18*"], "--dataset"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, key, capsys):
    assert commands.main(["evaluate", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {key}: ")


def test_the_speed_is_the_median_call_after_the_first(untrained, monkeypatch):
    clock, waits = [0.0], iter([9.0, 0.25, 0.5, 0.25, 0.25])

    def forward(variables, pixels):
        assert pixels.shape == (16, 8, 8, 3)
        clock[0] += next(waits)

    monkeypatch.setattr(throughput, "compiled_forward", lambda classifier, features: forward)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    assert throughput.images_per_second(untrained, 10) == 16 / 0.25
    assert next(waits, None) == 0.25  # one second has passed
