"""The benchmark of accuracy: what it runs, what it keeps, and its tables from made-up records."""

import argparse
import io
import json
import pathlib
import sys

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from benchmarks.accuracy import command, experiments, tables, torch_run
from flax_resnet.config import freeze
from flax_resnet.config.plan import plan
from flax_resnet.errors import DataError
from flax_resnet.training.runs.folder import METRICS, SUMMARY, RunFolder

DROPS = {"schedule.unit": "fraction", "schedule.milestones": (0.5, 0.75)}
TOP1 = {"plain20": (0.50, 0.60), "resnet20": (0.70, 0.72)}  # of seeds 0 and 1, at the end


@pytest.fixture(autouse=True)
def four_epochs(monkeypatch):
    """The degradation experiment at the length of the records that `finish` makes up."""
    rows = [
        row._replace(overrides={**DROPS, "train.epochs": 4, "train.eval_every": 1.0})
        for row in command.EXPERIMENTS["plain_vs_residual"]
    ]
    monkeypatch.setitem(command.EXPERIMENTS, "plain_vs_residual", rows)


def call(monkeypatch, folder, *arguments, experiment="plain_vs_residual", data="nowhere"):
    given = [experiment, f"--folder={folder}", f"--data={data}", *arguments]
    monkeypatch.setattr(sys, "argv", ["accuracy", *given])
    return command.main()


def finish(run, final):
    """Writes what a finished run leaves: four epochs of 78 steps, a record of training in the middle of each."""
    config = command.configuration(run)
    run.folder.mkdir(parents=True)
    RunFolder.at(run.folder).store_config(config)
    records = []
    for epoch in (1, 2, 3, 4):
        train = {"loss": 4.0 - epoch, "top1": 0.1, "images_per_second": 128.0}
        test = {"loss": 1.0, "top1": final - 0.1 * (4 - epoch), "count": 10}
        if config.ema.decay:
            test["ema_top1"] = test["top1"] + 0.01
        for split, step, values in (("train", 78 * epoch - 39, train), ("test", 78 * epoch, test)):
            records.append({"step": step, "epoch": step / 78, "split": split, **values})
    lines = (json.dumps(record) + "\n" for record in records)
    (run.folder / METRICS).write_text("".join(lines))
    (run.folder / SUMMARY).write_text("done\n")


def made_up(folder, **overrides):
    """Finishes two of the four rows with two seeds each."""
    for label, scores in TOP1.items():
        row = next(r for r in command.EXPERIMENTS["plain_vs_residual"] if r.label == label)
        for seed, score in enumerate(scores):
            values = command.DATA | row.overrides | {"train.seed": seed, "data.path": "nowhere"}
            where = folder / "plain_vs_residual" / label / str(seed)
            finish(command.Run(row, seed, where, values | overrides), score)


def test_tables_json_and_curves(tmp_path, monkeypatch, capsys):
    made_up(tmp_path / "runs")
    output, plot = tmp_path / "new" / "found.json", tmp_path / "curves.png"
    call(monkeypatch, tmp_path / "runs", "--collect", f"--output={output}", f"--plot={plot}")
    printed = capsys.readouterr().out.splitlines()
    # Four records of 39, 78, 78 and 78 steps at a step a second.
    assert (
        "| plain20 | 2 | 39,936 | 0.000 (0.000 to 0.000) | 55.00 (50.00 to 60.00) |  | 273 (273 to 273) |"
        in printed
    )
    assert "| epoch | plain20 | resnet20 |" in printed
    assert "| 1 | 25.00 (20.00 to 30.00) | 41.00 (40.00 to 42.00) |" in printed
    record = json.loads(output.read_text())
    assert set(record["rows"]) == set(TOP1)
    score = record["rows"]["plain20"]["top1"]
    assert score["mean"] == pytest.approx(0.55)
    assert score["std"] == pytest.approx(0.1 / 2**0.5)
    assert [(run["row"], run["seed"]) for run in record["runs"]] == [
        ("plain20", 0), ("plain20", 1), ("resnet20", 0), ("resnet20", 1),
    ]  # fmt: skip
    assert record["runs"][0]["evaluations"][-1]["top1"] == 0.5
    assert record["runs"][3]["command"] == (
        "python -m flax_resnet.main --config configs/cifar_he2016.py:resnet20 --workdir "
        f"{tmp_path}/runs/plain_vs_residual/resnet20/1 "
        f"--compilation_cache={tmp_path}/runs/plain_vs_residual/compiled --config.data.path=nowhere "
        "--config.data.source=folder --config.data.limit=10000 --config.train.seed=1 "
        "--config.schedule.unit=fraction '--config.schedule.milestones=(0.5,0.75)' --config.train.epochs=4 "
        "--config.train.eval_every=1.0"
    )
    assert Image.open(plot).size == (1320, 495)


def test_every_row_can_be_planned(monkeypatch, tmp_path):
    monkeypatch.undo()  # the experiments as they are
    for experiment, rows in command.EXPERIMENTS.items():
        for row in rows:
            if row.config.startswith("configs/finetune"):  # which needs its weights
                continue
            overrides = command.DATA | row.overrides | {"data.path": "nowhere"}
            config = command.configuration(command.Run(row, 0, tmp_path, overrides))
            made = plan(config, num_train=10_000, num_eval=10_000, num_classes=10)
            assert made.total_steps > 4, experiment
            if row.system == "torch":
                torch_run.check(config)


def test_seconds_to_a_top1(tmp_path, monkeypatch, capsys):
    """Seed 0 has 20, 30, 40, 50 % after 78 steps each; a record of a second a step ends in each epoch's middle."""
    made_up(tmp_path)
    output, plot = tmp_path / "found.json", tmp_path / "curves.png"
    monkeypatch.setattr(tables, "TIMED", ("plain_vs_residual",))
    arguments = ("--collect", "--target=0.55", f"--output={output}", f"--plot={plot}")
    call(monkeypatch, tmp_path, *arguments)
    assert "| 254 (254 to 254); 1 of 2 reach it |" in capsys.readouterr().out
    record = json.loads(output.read_text())
    assert record["rows"]["plain20"]["target"]["reached"] == 1
    evaluations = record["runs"][0]["evaluations"]
    assert [one["seconds"] for one in evaluations] == [78.0, 156.0, 234.0, 273.0]
    assert Image.open(plot).size == (1980, 495)
    call(monkeypatch, tmp_path, "--collect", "--target=0.25", "--seeds=0")
    assert "| 117 (117 to 117); 1 of 1 reach it |" in capsys.readouterr().out
    call(monkeypatch, tmp_path, "--collect", "--target=1")
    assert "| 0 of 2 reach it |" in capsys.readouterr().out


def test_averaged_weights_have_columns_of_their_own(tmp_path, monkeypatch, capsys):
    made_up(tmp_path, **{"ema.decay": 0.99})
    rows = [
        r._replace(overrides=r.overrides | {"ema.decay": 0.99})
        for r in command.EXPERIMENTS["plain_vs_residual"]
    ]
    monkeypatch.setitem(command.EXPERIMENTS, "plain_vs_residual", rows)
    call(monkeypatch, tmp_path, "--collect", "--seeds", "1")
    printed = capsys.readouterr().out
    assert "| 60.00 (60.00 to 60.00) | 61.00 (61.00 to 61.00) |" in printed
    assert "| epoch | plain20 | plain20, averaged | resnet20 | resnet20, averaged |" in printed


def test_commands_are_what_the_check_takes_them_for(tmp_path):
    """The configuration that a kept run is compared with is the one that its command line makes."""
    from absl import flags

    from flax_resnet.cli import app, config_flag

    for experiment in command.EXPERIMENTS:
        args = argparse.Namespace(
            experiment=experiment, folder=tmp_path, data="a folder", seeds=[2], epochs=0, limit=0
        )
        for run in command.planned(args):
            values, argv = flags.FlagValues(), app.resolve_config(run.command[2:])
            config_flag.define(values, argv)
            app.define_common(values)
            flags.DEFINE_string("workdir", "", "", flag_values=values)
            values(["program", *argv])
            assert config_flag.frozen_config(values) == command.configuration(run)
            assert values["workdir"].value == str(run.folder)


def test_fine_tuning_starts_from_the_first_seeds_network_on_a_few_images_of_other_classes(tmp_path):
    for split, count in (("train", 60), ("test", 3)):
        for name in experiments.FIRST + experiments.LAST:
            (tmp_path / "all" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "all" / split / name / f"{number:02}.jpg").touch()
    args = argparse.Namespace(
        experiment="fine_tuning",
        folder=tmp_path,
        data=str(tmp_path / "all"),
        seeds=[1, 2],
        epochs=0,
        limit=0,
    )
    runs = {(run.row.label, run.seed): run for run in command.planned(args)}
    assert set(runs) == {
        ("pretrained", 1),
        *((row, seed) for row in ("scratch", "fine-tuned") for seed in (1, 2)),
    }
    tuned, begun = runs["fine-tuned", 2], runs["pretrained", 1]
    assert tuned.overrides["model.pretrained"] == str(begun.folder)
    assert tuned.overrides["data.path"] == runs["scratch", 2].overrides["data.path"]
    for run, names, count in ((tuned, experiments.LAST, 50), (begun, experiments.FIRST, 60)):
        command.link_images(tmp_path / "all", run)
        folder = pathlib.Path(run.overrides["data.path"])
        assert sorted(p.name for p in (folder / "train").iterdir()) == sorted(names)
        assert len(list(folder.glob("train/*/*.jpg"))) == 5 * count
        assert len(list(folder.glob("test/*/*.jpg"))) == 5 * 3
    with refused("--data", tmp_path / "none", DataError) as caught:
        command.link_images(
            tmp_path / "none", begun._replace(overrides={"data.path": tmp_path / "x"})
        )
    assert "train/airplane/" in caught.value.problem


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch, capsys, photographs):
    made_up(tmp_path)
    (photographs / "test").mkdir()
    for name in ("china", "flower"):
        (photographs / name).rename(photographs / "test" / name)
    (photographs / "train").symlink_to(photographs / "test")
    trained = []

    def train(run):
        trained.append((run.row.label, run.seed))
        finish(run, 0.5)

    monkeypatch.setattr(command, "train_one", train)
    call(monkeypatch, tmp_path, "--seeds", "0", "1", data=photographs)
    assert trained == [("plain56", 0), ("resnet56", 0), ("plain56", 1), ("resnet56", 1)]
    labels = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "39,936" in line]
    assert labels == ["plain20", "resnet20", "plain56", "resnet56"]


def test_rows_without_their_system_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "absent", lambda *names: ["torch"])
    rows = command.EXPERIMENTS["resnet20"]
    runs = [command.Run(row, 0, tmp_path / row.label, {}) for row in rows]
    assert [run.row.label for run in command.startable(runs)] == ["resnet20"]
    assert capsys.readouterr().out == "left out, for want of torch: torch\n"


def test_a_command_that_fails_ends_with_its_code(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(experiments.SYSTEMS, "flax_resnet", "benchmarks.nothing")
    row = command.EXPERIMENTS["resnet20"][0]
    run = command.Run(row, 3, tmp_path / "runs" / "3", {"data.path": "nowhere"})
    with pytest.raises(SystemExit) as stopped:
        command.train_one(run)
    assert stopped.value.code == 1
    said = capfd.readouterr()
    assert said.out.startswith("\npython -m benchmarks.nothing --config configs/cifar_he2016.py")
    assert said.err.splitlines()[-1].startswith("error: resnet20, seed 3: its command ended with 1")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--seeds", "1.5"], ["--seeds=1.5: "]),
        (["--output", "."], ["--output=.: "]),
        (["--plot", "curves.txt"], ["--plot=curves.txt: "]),
        (["--folder", __file__], [f"--folder={__file__}: "]),
        (["--epochs", "5", "--collect"], ["FOLDER/plain_vs_residual/plain20/0: ", "train.epochs: 4 -> 5"]),
        (["--limit", "9", "--collect"], ["FOLDER/plain_vs_residual/plain20/0: ", "data.limit: 10000 -> 9"]),
        (["--seeds", "7", "--collect"], ["--folder=FOLDER: ", "plain_vs_residual"]),
        (["--target", "94"], ["--target=94: "]),
        ([], ["data.path='nowhere': "]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments, names, tmp_path, monkeypatch, capsys):
    made_up(tmp_path)
    code = 5 if "--collect" in arguments else 2 if arguments else 4  # the folder, a flag, the data
    assert call(monkeypatch, tmp_path, *arguments) == code
    (line,) = capsys.readouterr().err.replace(str(tmp_path), "FOLDER").splitlines()
    assert all(name in line for name in names), line


def test_an_unknown_experiment_is_refused_by_name(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path, experiment="resnet2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "EXPERIMENT=resnet2: " in line
    assert "'resnet20'" in line


@pytest.mark.parametrize("lacking", [7, 6], ids=["the last evaluation", "training before it"])
def test_records_that_end_early_are_refused(lacking, tmp_path, monkeypatch, capsys):
    made_up(tmp_path)
    file = tmp_path / "plain_vs_residual" / "plain20" / "0" / METRICS
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:lacking], *lines[lacking + 1 :]]))
    assert call(monkeypatch, tmp_path, "--collect") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file.parent}: " in line
    assert METRICS in line


# PyTorch's side, as far as it needs no PyTorch


class Encoded:
    """A source of images in memory."""

    orientations = True

    def __init__(self, images):
        self.images = images

    def read(self, indices):
        from flax_resnet.data.records import Records

        labels = np.arange(len(self.images), dtype=np.int32)[indices]
        return Records([self.images[i] for i in indices], labels)

    def describe(self, index):
        return f"image {index}"


def test_pillow_gives_the_pixels_that_training_decodes(photographs):
    from flax_resnet.data.decode import training_pixels

    images = []
    for file in sorted(photographs.rglob("*.jpg")):
        buffer = io.BytesIO()
        Image.open(file).crop((8, 8, 40, 40)).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    config = freeze({"data": {"image_size": 32}})
    found, labels = torch_run.pixels(Encoded(images), np.arange(12)[::-1], config)
    assert labels.tolist() == list(range(12))[::-1]
    for image, pixels in zip(images[::-1], found, strict=True):
        np.testing.assert_array_equal(pixels, training_pixels(image, config.data, seed=[0, 0]))
    with refused("image 1", kind=DataError):
        torch_run.pixels(Encoded([images[0], b"torn"]), np.arange(2), config)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"data.source": "tfds"}, "'folder' or 'csv'"),
        ({"model.name": "plain20"}, tuple(torch_run.NETWORKS)),
        ({"model.dropout": 0.1}, "unset"),
        ({"model.widths": (8, 8, 8)}, "unset"),
        ({"ema.decay": 0.9, "ema.bn_batches": 2}, "0"),
        ({"loss.name": "sigmoid"}, "'softmax'"),
        ({"optimizer.name": "adamw"}, "'sgd'"),
        ({"data.train_crop": "center"}, "'resize'"),
    ],
)
def test_settings_that_torch_does_not_follow_are_refused(changes, allowed, tmp_path):
    row = command.EXPERIMENTS["resnet20"][1]
    values = command.DATA | row.overrides | {"data.path": "nowhere"}
    check = torch_run.check
    check(command.configuration(command.Run(row, 0, tmp_path, values)))
    if "data.source" in changes:
        del values["data.path"]
    with refused(*list(changes.items())[-1]) as caught:
        check(command.configuration(command.Run(row, 0, tmp_path, values | changes)))
    assert caught.value.allowed == allowed


def test_torch_that_is_not_installed_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch_run, "absent", lambda *names: ["torch"])
    given = ["--config=configs/cifar_he2016.py", f"--workdir={tmp_path}"]
    assert torch_run.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: torch: ")
    assert "pip install '.[parity]'" in line
