"""Probes of a network's features, and the command that reports them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import refused
from untrained import initial, random_source

import flax_resnet
from flax_resnet import create_model, main
from flax_resnet.cli import commands
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.inference import features
from flax_resnet.inference.probes import measure
from flax_resnet.weights import to_torch, write_safetensors


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """A tiny network trained on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main.main([*tiny, f"--workdir={workdir}", "--config.train.epochs=6"]) == 0
    return workdir


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of timm's smallest network, for three classes."""
    model = create_model("test_resnet", num_classes=3)
    file = tmp_path_factory.mktemp("weights") / "three.safetensors"
    write_safetensors(file, to_torch(initial(model)))
    return file


@pytest.mark.parametrize(
    ("options", "key", "limit"),
    [
        ({"k": 13}, "k", "12"),  # as many as there are training images
        ({"k": 9, "limit": 8}, "k", "8"),
        ({"k": 0}, "k", "12"),
        ({"k": 1, "temperature": 0.0}, "temperature", ""),
        ({"k": 1, "temperature": float("inf")}, "temperature", ""),
        ({"k": 1, "temperature": float("nan")}, "temperature", ""),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_network_runs(
    monkeypatch, untrained, options, key, limit
):
    monkeypatch.setattr(features, "compute_features", lambda *a, **k: 1 / 0)
    train, test = random_source(12)[0], random_source(4)[0]
    with refused(key, ..., ConfigError) as caught:
        measure(untrained, train, test, **options)
    assert repr(caught.value.value) == repr(options[key])  # NaN is not equal to itself
    assert f" {limit} " in f" {caught.value.allowed} " or not limit


def test_one_class_only_and_other_classes_are_refused(untrained):
    classifier, test = untrained, random_source(4)[0]
    images = random_source(12)[1]
    with refused("train", ..., DataError) as caught:
        measure(classifier, *[ArraySource(images, np.zeros(12, int), ["x"])] * 2, k=1)
    assert "'x'" in caught.value.problem
    with refused("test", ..., DataError):
        measure(classifier, random_source(12, classes=3)[0], test, k=1)
    train = ArraySource(images, np.zeros(12, int), test.class_names)
    with refused("labels", ..., DataError) as caught:
        measure(classifier, train, test, k=1)
    assert "12 training images" in caught.value.problem


def test_the_classes_of_two_splits_are_those_of_their_names_or_refused(monkeypatch, untrained):
    """300 random pairs of lists: a split is probed only if each label means the same class in both."""
    draw, probed = np.random.default_rng(0), 0

    def features_that_show_the_class(model, variables, config, source, **options):
        del model, variables, config, options
        labels = source.labels()
        named = ["abcdef".index(source.class_names[label]) for label in labels]
        return features.Features(np.eye(6, dtype=np.float32)[named], labels)

    monkeypatch.setattr(features, "compute_features", features_that_show_the_class)
    for _ in range(300):
        names = list(draw.permutation(list("abcdef"))[: draw.integers(2, 5)])
        other = [names, draw.permutation(names), names[::-1], list("abcd")][draw.integers(4)]
        sources = [
            ArraySource(np.zeros((4 * len(own), 4, 4, 3), np.uint8), np.arange(4 * len(own)) % len(own), own)
            for own in (names, list(other))
        ]  # fmt: skip
        if list(other) != names:
            with refused("test", ..., DataError):
                measure(untrained, *sources, k=1)
            continue
        found = measure(untrained, *sources, k=1)
        assert found["knn_top1"] == found["linear_top1"] == 1
        probed += 1
    assert 50 < probed < 250


def test_both_splits_of_a_folder_and_of_a_table_have_one_list_of_classes(tmp_path):
    """The order of the folders, of the rows and of the classes of each split does not matter."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source

    draw = np.random.default_rng(0)
    for trial in range(20):
        names = draw.permutation([*"abcdef", "10", "9"])[: draw.integers(3, 7)]
        held = draw.permutation(names)[: draw.integers(1, len(names) + 1)]
        root, rows = tmp_path / str(trial), []
        for split, own in (("train", names), ("test", held)):
            for name in own:
                (root / split / name).mkdir(parents=True)
                (root / split / name / "x.png").touch()
                rows.append(f"{split}/{name}/x.png,{name},{split}")
        (root / "t.csv").write_text("\n".join(["path,label,split", *draw.permutation(rows)]))
        for kind, path in (("folder", root), ("csv", root / "t.csv")):
            data = Data(source=kind, path=str(path))
            train, test = (open_source(data, train=side) for side in (True, False))
            assert train.class_names == test.class_names
            for source in (train, test):
                for index, label in enumerate(source.labels()):
                    assert source.describe(index).split("/")[-2] == source.class_names[label]


def test_a_run_is_probed_and_beats_the_network_before_training(run, cache_dir, capsys):
    options = [f"--workdir={run}", f"--compilation_cache={cache_dir}"]
    capsys.readouterr()
    assert commands.main(["probe", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (line,) = captured.out.splitlines()
    (record,) = map(json.loads, (run / "probes.jsonl").read_text().splitlines())
    assert record["knn_top1"] > 0.85  # 0.914, as the linear one
    assert record["linear_top1"] > 0.85
    assert {k: record[k] for k in ("step", "dataset", "train_split", "split", "k", "temperature")} == {
        "step": 30, "dataset": "digits", "train_split": "train", "split": "test", "k": 20, "temperature": 0.07,
    }  # fmt: skip
    assert (record["train_count"], record["count"]) == (1437, 360)
    assert line == (
        f"top-1 of 20 neighbours {record['knn_top1']:.2%}, of a linear classifier {record['linear_top1']:.2%} "
        f"(C={record['linear_c']:g}) on test (360 images; learnt from 1437), checkpoint 30"
    )

    trained = flax_resnet.load(run)
    from flax_resnet.data.open import open_source

    sources = [open_source(trained.config.data, train=side) for side in (True, False)]
    fresh = dataclasses.replace(trained, variables=initial(trained.model))
    found = measure(fresh, *sources, limit=400, batch_size=360)
    assert found["train_count"] == 400
    assert (
        found["knn_top1"] < record["knn_top1"] - 0.1
    )  # 0.55 to 0.60 with all images, of three draws
    assert found["linear_top1"] < record["linear_top1"] - 0.1  # 0.54 to 0.66

    assert commands.main(["probe", *options, "--split=train[1200:]", "--train_split=train[:200]",
                     "--k=3", "--limit=150", "--checkpoint=25", "--batch_size=64"]) == 0  # fmt: skip
    assert "on train[1200:] (237 images; learnt from 150), checkpoint 25" in capsys.readouterr().out
    assert len((run / "probes.jsonl").read_text().splitlines()) == 2


def test_a_dataset_of_other_classes_in_a_folder_without_splits(
    run, weights, photographs, cache_dir, capsys
):
    """A fixed fifth is monitored, by the features of the others; the head's classes do not matter."""
    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source

    data = Data(source="folder", path=str(photographs))
    sources = [open_source(data, train=side) for side in (True, False)]
    files = [{source.describe(i) for i in range(len(source))} for source in sources]
    assert not files[0] & files[1]
    counts = f"on test ({len(files[1])} images; learnt from {len(files[0])})"
    assert len(files[0]) + len(files[1]) == 12
    common = ["probe", f"--dataset={photographs}", f"--compilation_cache={cache_dir}", "--k=3"]
    network = ["--model=test_resnet", f"--weights={weights}", "--image_size=32"]
    assert commands.main([*common, *network]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{counts}, test_resnet")
    copy = photographs.parent / "copy"
    shutil.copytree(run, copy)
    (copy / "probes.jsonl").unlink(missing_ok=True)
    assert commands.main([*common, f"--workdir={copy}"]) == 0
    assert counts in capsys.readouterr().out
    assert json.loads((copy / "probes.jsonl").read_text())["dataset"] == str(photographs)
    (copy / "probes.jsonl").unlink()
    (copy / "probes.jsonl").mkdir()
    assert commands.main([*common, f"--workdir={copy}"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert str(copy / "probes.jsonl") in line


# By exit code: a mistake in the command, data that do not fit, no run.
REFUSED = {
    2: [
        ([], ["--workdir", "--model"]),
        (["--model=x", "--workdir=y"], ["--model=x", "--workdir=y"]),
        (["--model=test_resnet", "--weights=WEIGHTS"], ["--dataset"]),
        (["--model=test_resnet", "--checkpoint=best", "--dataset=x"], ["--checkpoint=best"]),
        (["--workdir=RUN", "--weights=x"], ["--weights=x"]),
        (["--workdir=RUN", "--dataset=TMP/plain", "--split=val"], ["--split=val", "TMP/plain"]),
        (["--workdir=RUN", "--dataset=TMP/plain", "--train_split=x"], ["--train_split=x"]),
        (["--workdir=RUN", "--k=many"], ["--k=many"]),
        (["--workdir=RUN", "--k=0"], ["--k=0"]),
        (["--workdir=RUN", "--k=1438"], ["k=1438", "1437"]),
        (["--workdir=RUN", "--temperature=warm"], ["--temperature=warm"]),
        (["--workdir=RUN", "--temperature=-1"], ["temperature=-1"]),
        (["--workdir=RUN", "--limit=-1"], ["--limit=-1"]),
        (["--workdir=RUN", "--image_size=big"], ["--image_size=big"]),
    ],
    4: [
        (["--workdir=RUN", "--split=train"], ["--train_split=train", "--split=train", "1,437"]),
        (
            ["--workdir=RUN", "--train_split=test+train[:80%]", "--split=train[1100:]"],
            ["--train_split=test+train[:80%]", "--split=train[1100:]", " 50 "],
        ),
        (
            ["--workdir=RUN", "--dataset=TMP/twice.csv"],
            ["--train_split=train", "--split=test", " 1 "],
        ),
        (["--workdir=RUN", "--train_split=valid"], ["'valid'", "train, test"]),
        (["--workdir=RUN", "--dataset=./nowhere"], ["--dataset=./nowhere"]),
        (["--workdir=RUN", "--dataset=TMP/untrained"], ["TMP/untrained", "'train'", "test, val"]),
        (["--workdir=RUN", "--dataset=TMP/one"], ["TMP/one", "'a'"]),
        (["--workdir=RUN", "--dataset=TMP/test.csv"], ["TMP/test.csv", "'train'"]),
    ],
    5: [
        (["--workdir=TMP"], ["TMP"]),
    ],
}


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [(code, *row) for code, rows in REFUSED.items() for row in rows],
)
def test_what_the_command_refuses(code, arguments, words, run, weights, tmp_path, capsys):
    for folder in ("untrained/test/a", "untrained/val/a", "one/a", "plain/a", "plain/b"):
        (tmp_path / folder).mkdir(parents=True)
    twice = "path,label,split\na.png,0,train\nb.png,1,train\nc.png,0,test\nb.png,1,test\n"
    (tmp_path / "twice.csv").write_text(twice)
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "test.csv").write_text("path,label,split\na.png,0,test\nb.png,1,test\n")
    places = {"WEIGHTS": weights, "TMP": tmp_path, "RUN": run}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
        words = [word.replace(name, str(place)) for word in words]
    capsys.readouterr()
    assert commands.main(["probe", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_the_default_split_is_one_that_the_dataset_has(run, data_dir, weights, capsys):
    arguments = ["probe", "--model=test_resnet", f"--weights={weights}", "--dataset=digits"]
    arguments += [f"--data_dir={data_dir}", "--image_size=32", "--limit=60", "--batch_size=120"]
    assert commands.main(arguments) == 0
    assert "on test (360 images; learnt from 60)" in capsys.readouterr().out
