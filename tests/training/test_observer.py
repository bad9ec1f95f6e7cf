"""Observers of a run: records, evaluated variables, the end; and the report that the command writes at the end."""

import threading

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from untrained import random_source

import flax_resnet
from flax_resnet import main
from flax_resnet.cli.page import run_report
from flax_resnet.cli.report_observer import ReportObserver
from flax_resnet.config import freeze
from flax_resnet.errors import DataError, Interrupted
from flax_resnet.training.observer import Observer
from flax_resnet.training.runs.folder import RunFolder

SECTIONS = {
    "data": {"source": "python", "image_size": 8},
    "model": {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"},
    "train": {"batch_size": 16, "epochs": 2, "log_every": 2},
    "ema": {"decay": 0.5},
}


class Notes(Observer):
    """Notes every call."""

    def __init__(self):
        self.records, self.evaluated, self.ended = [], {}, []

    def on_record(self, step, epoch, split, values):
        self.records.append({"step": step, "epoch": epoch, "split": split, **values})

    def on_evaluation(self, step, variables):
        assert self.records[-1]["step"] == step
        assert self.records[-1]["split"] != "train"
        self.evaluated[step] = jax.device_get(variables)

    def on_end(self, workdir):
        assert (workdir / "summary.txt").is_file()
        self.ended.append(workdir)


class Stopping(Notes):
    """Sends a signal after the first evaluation, as a scheduler does."""

    def on_evaluation(self, step, variables):
        import signal

        signal.raise_signal(signal.SIGUSR1)


@pytest.fixture(scope="module")
def sources():
    return {"train_source": random_source(32)[0], "eval_source": random_source(16, seed=1)[0]}


@pytest.fixture(scope="module")
def observed(tmp_path_factory, sources):
    workdir, notes = tmp_path_factory.mktemp("run") / "run", Notes()
    flax_resnet.train(freeze(SECTIONS), workdir, observers=[notes], **sources)
    return workdir, notes


def test_an_observer_sees_records_variables_and_the_end(observed):
    workdir, notes = observed
    assert notes.ended == [workdir]
    assert notes.records == RunFolder.at(workdir).read_records()
    assert set(notes.evaluated) == {2, 4}
    assert set(notes.evaluated[4]) == {"", "ema_"}
    for prefix, ema in (("", False), ("ema_", True)):
        loaded = flax_resnet.load(workdir, ema=ema).variables["params"]
        for ours, theirs in zip(
            jax.tree.leaves(notes.evaluated[4][prefix]["params"]),
            jax.tree.leaves(loaded),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
    # Python's train() writes no report by itself.
    assert not (workdir / "report.html").exists()


def test_a_run_that_does_not_end_here_says_so_to_no_observer(observed, sources, tmp_path):
    workdir, _ = observed
    notes = Notes()
    flax_resnet.train(freeze(SECTIONS), workdir, observers=[notes], **sources)
    assert not notes.ended  # it was finished before
    assert threading.current_thread() is threading.main_thread()
    stopping = Stopping()
    with pytest.raises(Interrupted):
        flax_resnet.train(freeze(SECTIONS), tmp_path / "run", observers=[stopping], **sources)
    assert not stopping.ended
    after = Notes()
    flax_resnet.train(freeze(SECTIONS), tmp_path / "run", observers=[after], **sources)
    assert after.ended == [tmp_path / "run"]


@pytest.mark.slow
def test_the_command_writes_a_report_at_the_end(tiny, tmp_path):
    workdir = tmp_path / "run"
    command = [flag for flag in tiny if flag != "--noreport"]
    command += [f"--workdir={workdir}", "--config.train.epochs=1"]
    assert main.main(command) == 0
    for name in ("report.html", "classes.csv", "report.png"):
        assert (workdir / name).stat().st_size > 300
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "--config.train.epochs=1" in page
    shown = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0}).Reload()
    kinds = {
        tag: shown.SummaryMetadata(tag).plugin_data.plugin_name for tag in shown.Tags()["tensors"]
    }
    assert kinds["examples"] == kinds["confusion"] == "images"
    assert kinds["weights/conv1/kernel"] == "histograms"
    assert kinds["result/top1"] == "scalars"
    assert "hparams" in kinds.values()
    assert len(shown.Tensors("weights/fc/bias")) == 1
    # The finished run writes no second report; a resumed one does, and --noreport does not.
    (workdir / "report.html").unlink()
    assert main.main(command) == 0
    assert not (workdir / "report.html").exists()
    assert main.main([*command, "--config.train.epochs=2", "--noreport"]) == 0
    assert not (workdir / "report.html").exists()
    lines = (workdir / run_report.COMMAND).read_text().splitlines()
    assert len(lines) == 1
    assert "flax-resnet train --config=resnet18" in lines[0]


def test_a_report_that_fails_costs_one_line(tmp_path, monkeypatch, caplog):
    for error in (DataError("moved", key="data"), KeyError("x")):

        def fail(*args, error=error, **kwargs):
            raise error

        caplog.clear()
        monkeypatch.setattr(run_report, "gather", fail)
        ReportObserver(tmp_path, "command").on_end(tmp_path)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "\n" not in caplog.text.strip()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    caplog.clear()
    with caplog.at_level("INFO"):
        ReportObserver(tmp_path, "command").on_end(tmp_path)
    assert [record.levelname for record in caplog.records] == ["INFO"]
