"""Comparison of runs: paired by the names of the images, classes by name, refused where nothing can be said."""

import csv
import json

import numpy as np
import pytest
from conftest import refused, saved_run
from weights_by_name import SMALLEST

from flax_resnet.cli import compare
from flax_resnet.cli.plots import overlaid_runs
from flax_resnet.errors import DataError
from flax_resnet.inference import comparison
from flax_resnet.inference.classifier import load, load_pretrained
from flax_resnet.inference.intervals import proportion_interval
from flax_resnet.training.runs.folder import METRICS

NETWORK = {"name": "resnet20", "depths": (1, 1, 1)}


@pytest.fixture
def files(photographs):
    """The photographs in the order of the tables: not that of their names."""
    found = sorted(photographs.rglob("*.jpg"))
    return [found[number] for number in np.random.default_rng(0).permutation(len(found))]


def table(folder, name, files, labels=None):
    """Write a CSV file of images, all in the evaluation split but for one of each class."""
    labels = labels or [file.parent.name for file in files]
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "label", "split"])
        for file, label in zip(files, labels, strict=True):
            split = "train" if file.stem == "0" else "test"
            rows.writerow([file.relative_to(folder), label, split])
    return path


def a_run(folder, data, names, seed, **sections):
    data = {"image_size": 16, **data}
    return saved_run(folder, {"data": data, "model": NETWORK, **sections}, names, step=seed)


def printed(capsys, *arguments, code=0):
    assert compare.main([*map(str, arguments)]) == code
    return capsys.readouterr()


def test_images_are_paired_by_name_and_classes_matched_by_name(files, tmp_path, capsys):
    """The second run has its images and its classes in another order."""
    paths = table(tmp_path, "a", files), table(tmp_path, "b", files[::-1])
    orders = ["china", "flower"], ["flower", "china"]
    runs = [
        a_run(tmp_path / f"run{seed}", {"source": "csv", "path": str(path)}, names, seed)
        for seed, path, names in zip((3, 7), paths, orders, strict=True)
    ]
    records = [
        {"step": 1, "epoch": 1.0, "split": "test", "loss": 1.0, "top1": 0.75},
        {"step": 2, "epoch": 2.0, "split": "train", "loss": 0.5, "top1": 0.9},
        {"step": 2, "epoch": 2.0, "split": "test", "loss": 2.0, "top1": 0.5, "ema_top1": 0.625},
    ]
    (runs[0] / METRICS).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    picture = tmp_path / "pictures" / "compare.png"
    out = printed(capsys, *runs, "--format=json", f"--output={picture}").out
    found = json.loads(out)
    tested = [file for file in files if file.stem != "0"]
    right = []
    for run in runs:
        classifier = load(run)
        labels = classifier.predict(tested).labels
        pairs = zip(labels, tested, strict=True)
        right.append(np.array([classifier.class_names[g] == f.parent.name for g, f in pairs]))
    assert not np.array_equal(*right)
    assert found["images"] == len(tested) == 10
    for network, own in zip(found["networks"], right, strict=True):
        assert network["top1"] == pytest.approx(own.mean())
        assert (network["low"], network["high"]) == proportion_interval(int(own.sum()), 10)
    (pair,) = found["pairs"]
    assert pair["only_first"] == (right[0] & ~right[1]).sum()
    assert pair["only_second"] == (right[1] & ~right[0]).sum()
    assert pair["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    first, second = found["networks"]
    assert (first["step"], first["epochs"], first["monitor"]) == (3, 2.0, "top1")
    assert (first["best"], first["best_epoch"], first["last"]) == (0.75, 1.0, 0.625)
    assert (second["step"], second["epochs"], second["best"]) == (7, None, None)
    assert found["settings"] == {}  # the place of the data does not change the result
    assert picture.stat().st_size > 10_000


def test_other_images_need_a_dataset_and_are_then_those_in_common(
    photographs, files, tmp_path, capsys
):
    data = {"source": "folder", "path": str(photographs)}
    more = [{"split_seed": seed, "eval_fraction": 0.7} for seed in (0, 1)]
    train = {"train": {"epochs": 5}}
    one = a_run(tmp_path / "one", data | more[0], ["china", "flower"], 1)
    two = a_run(tmp_path / "two", data | more[1], ["china", "flower"], 2, **train)
    held = [
        {c.source.describe(i) for i in range(len(c.source))}
        for c in map(comparison.open_run, map(str, (one, two)))
    ]
    assert held[0] != held[1]
    assert held[0] & held[1]
    error = printed(capsys, one, two, code=4).err.splitlines()[-1]
    assert error.startswith(f"error: RUNS={two}: ")
    assert "--dataset" in error
    shown = printed(capsys, one, two, f"--dataset={photographs}").out
    assert shown.startswith("12 images")  # neither knows them by its metadata, so all are used
    settings = shown.strip().rpartition("\n\n")[2].splitlines()
    assert settings[0].split() == ["setting", str(one), str(two)]
    rows = {name: values for name, *values in map(str.split, settings[1:])}
    assert rows.keys() == {"data.split_seed", "train.epochs"}
    assert rows["train.epochs"][1] == "5"


@pytest.mark.slow
def test_a_run_is_compared_with_pretrained_weights(files, weights, tmp_path, capsys):
    """The weights have no class names, so their classes are those of the data by position."""
    data = {"source": "csv", "path": str(table(tmp_path, "a", files))}
    run = a_run(tmp_path / "run", data, ["flower", "china"], 3)
    folder = tmp_path / "weights"
    folder.mkdir()
    file = folder / f"{SMALLEST}.safetensors"
    file.write_bytes(weights.read_bytes())
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    config = {"architecture": SMALLEST, "num_classes": 2, "pretrained_cfg": about}
    file.with_suffix(".json").write_text(json.dumps(config))
    options = [f"--model={SMALLEST}", f"--weights={folder}", f"--dataset={data['path']}"]
    found = json.loads(printed(capsys, run, *options, "--format=json").out)
    tested = [file for file in files if file.stem != "0"]
    classifier = load_pretrained(SMALLEST, weights=file)
    guesses = [("china", "flower")[label] for label in classifier.predict(tested).labels]
    right = np.array([g == f.parent.name for g, f in zip(guesses, tested, strict=True)])
    assert [network["name"] for network in found["networks"]] == [str(run), SMALLEST]
    assert found["networks"][1]["top1"] == pytest.approx(right.mean())
    assert found["networks"][1]["step"] is None
    assert found["images"] == len(tested)


def contender(name, files, labels, data_path="data"):
    """A contender of which only the images matter."""
    from flax_resnet.config import freeze
    from flax_resnet.data.sources.files import FileSource

    classes = tuple(sorted({*labels}))
    source = FileSource("/root", files, [classes.index(label) for label in labels], classes)
    config = freeze({"data": {"source": "folder", "path": data_path}})
    return comparison.Contender(name, None, {}, config, source, tuple(labels))


def test_shared_images_are_those_of_one_name_and_one_class():
    one = contender("one", ["a", "b", "c", "b"], "xyxy")
    two = contender("two", ["b", "c", "b", "a"], "yxyx")
    for common in (True, False):
        rows = comparison.shared_images([one, two], common=common)
        assert [row.tolist() for row in rows] == [[0, 1, 2, 3], [3, 0, 1, 2]]
    three = contender("three", ["d", "c", "a"], "yxx")
    with refused("RUNS", "three", DataError):
        comparison.shared_images([one, two, three], common=False)
    rows = comparison.shared_images([one, two, three], common=True)
    assert [row.tolist() for row in rows] == [[0, 2], [3, 1], [2, 1]]
    with refused("/root/c", kind=DataError):
        comparison.shared_images(
            [one, contender("four", ["a", "b", "c", "b"], "xyyy")], common=True
        )
    with refused("--dataset", kind=DataError):
        comparison.shared_images([one, contender("five", ["e", "f"], "xy")], common=True)


def test_one_run_twice_or_alone_and_a_run_without_a_checkpoint_are_refused(tmp_path, capsys):
    run = a_run(tmp_path / "run", {}, "0123456789", 1)
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for arguments, key, code in (
        ([run], "RUNS", 2),
        ([run, f"{run}/../run"], "RUNS", 2),
        ([run, tmp_path / "link"], "RUNS", 2),
        ([run, "--model=resnet18"], "--dataset", 2),
        ([run, tmp_path / "empty", "--weights=x"], "--weights", 2),
        (["--model=resnet18", "--model=resnet18", "--dataset=digits"], "--model", 2),
        ([run, tmp_path / "empty"], f"{tmp_path / 'empty' / 'checkpoints'}", 5),
        ([run, tmp_path / "nothing"], f"{tmp_path / 'nothing'}", 5),
        ([run, tmp_path / "empty", "--output=x.txt"], "--output", 2),
    ):
        (line,) = printed(capsys, *arguments, code=code).err.splitlines()
        assert line.startswith(f"error: {key}"), line


def test_p_values_are_adjusted_by_holm():
    """R's p.adjust(c(0.01, 0.04, 0.03), "holm")."""
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.holm([0.9, 0.8]) == [1.0, 1.0]
    assert comparison.holm([0.2]) == [0.2]


def test_drawn_names_leave_out_common_folders():
    history = comparison.History(0, None, [], 0)
    runs = [
        comparison.Contender(name, None, {}, None, None, (), history)
        for name in ("/tmp/runs/a", "/tmp/runs/b/c/")
    ]
    model = comparison.Contender("resnet18.a1_in1k", None, {}, None, None, ())
    assert overlaid_runs.labels([*runs, model]) == ["a", "b/c", "resnet18.a1_in1k"]
    assert overlaid_runs.labels([runs[0], model]) == ["/tmp/runs/a", "resnet18.a1_in1k"]
