"""The log section, and the observer that passes a run to a tracker: order, failures, hangs, statuses."""

import dataclasses
import threading
import time

import jax
import pytest
from conftest import refused
from untrained import random_source

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import tracker_observer
from flax_resnet.cli.tracker_observer import TrackerObserver, tracked
from flax_resnet.config import differences, flatten, freeze
from flax_resnet.errors import DataError, Interrupted
from flax_resnet.settings import UNSET
from flax_resnet.trackers import tracker
from flax_resnet.trackers.log_section import Log
from flax_resnet.trackers.tracker import TRACKERS, TrackerRow
from flax_resnet.training.observer import Observer
from flax_resnet.training.runs.folder import RunFolder

SECTIONS = {
    "data": {"source": "python", "image_size": 8},
    "model": {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"},
    "train": {"batch_size": 16, "epochs": 1, "log_every": 1},
}
SECRET = "hunter2"


class Notes:
    """A tracking service that notes all calls; `fail` is the name of the call that raises."""

    def __init__(self, fail="", error=None):
        self.calls, self.opened, self.fail = [], [], fail
        self.error = error or RuntimeError("no such server http://ann:hunter2@host/ key-123\nmore")
        self.run_id, self.address = "seven", "nowhere"

    def row(self):
        return TrackerRow(
            name="mlflow", help="notes", package="json", secrets=("NOTES_KEY",), open=self.open
        )

    def open(self, run):
        self.opened.append(run)
        self.note("open")
        return self

    def note(self, name, *values):
        if name == self.fail:
            raise self.error
        self.calls.append((name, *values))

    def describe(self, facts):
        self.note("describe", facts)

    def log_metrics(self, step, metrics):
        self.note("log_metrics", step, metrics)

    def log_file(self, path):
        self.note("log_file", path.name)

    def finish(self, status):
        self.note("finish", status)


@pytest.fixture
def workdir(tmp_path):
    folder = RunFolder.at(tmp_path / "run")
    folder.claim(freeze(SECTIONS), resume="auto")
    return folder.path


@pytest.fixture
def known(monkeypatch):
    """Makes a service the only tracker, under the name mlflow."""

    def use(notes):
        for module in (tracker_observer, tracker):
            monkeypatch.setattr(module, "TRACKERS", {"mlflow": notes.row()})
        return Log(trackers=("mlflow",), project="birds")

    return use


def test_a_run_arrives_at_its_tracker_in_order(tmp_path, known):
    notes, workdir = Notes(), tmp_path / "run"
    config = freeze(SECTIONS)
    sources = {"train_source": random_source(32)[0], "eval_source": random_source(16, seed=1)[0]}
    with tracked(known(notes), workdir) as observers:
        flax_resnet.train(config, workdir, observers=observers, **sources)
    (run,) = notes.opened
    assert (run.project, run.name, run.folder, run.run_id) == ("birds", "run", workdir, "")
    stored = flatten(RunFolder.at(workdir).read_config())
    assert run.settings == {key: value for key, value in stored.items() if value is not UNSET}
    assert run.settings["train.batch_size"] == 16
    records = [
        ("log_metrics", r.pop("step"), {"epoch": r.pop("epoch")}
         | {f"{r['split']}/{key}": value for key, value in r.items() if key != "split"})
        for r in RunFolder.at(workdir).read_records()
    ]  # fmt: skip
    assert len(records) == 3
    begin, first, *middle = notes.calls
    assert begin == ("open",)
    assert first[1]["checkpoints"] == str(workdir / "checkpoints")
    assert middle[:3] == records
    best = middle[3][1]["best_checkpoint"]
    assert best == str(workdir / "checkpoints" / "2")
    assert (workdir / "checkpoints" / "2").is_dir()
    files = [call[1] for call in middle[4:-1]]
    assert {"config.json", "summary.txt", "results.csv"} == set(files)
    assert middle[-1] == ("finish", "finished")


def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(workdir, known):
    for expected in ("", "seven"):
        notes = Notes()
        with tracked(known(notes), workdir) as (observer,):
            observer.on_record(1, 0.5, "train", {"loss": 1.0})
        assert notes.opened[0].run_id == expected


@pytest.mark.parametrize("fail", ["open", "describe", "log_metrics", "log_file", "finish"])
def test_a_tracker_that_fails_warns_once_and_is_left_alone(
    workdir, known, caplog, monkeypatch, fail
):
    monkeypatch.setenv("NOTES_KEY", "key-123")
    notes = Notes(fail)
    with tracked(known(notes), workdir) as (observer,):
        observer.on_record(1, 0.5, "train", {"loss": 1.0})
        observer.on_end(workdir)
        for _ in range(100):
            time.sleep(0.01)
            observer.on_record(2, 1.0, "train", {"loss": 1.0})
            if caplog.records:
                break
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    text = warning.getMessage()
    assert "mlflow" in text
    assert "no such server" in text
    assert [part for part in ("\n", SECRET, "key-123") if part in text] == []
    assert fail not in [name for name, *_ in notes.calls]
    if fail not in ("open", "finish"):
        deadline = time.monotonic() + 10
        while notes.calls[-1] != ("finish", "failed") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert notes.calls[-1] == ("finish", "failed")


def test_a_package_that_cannot_be_imported_costs_one_line(workdir, known, caplog):
    with tracked(known(Notes("open", ImportError("no module"))), workdir) as (observer,):
        observer.on_record(1, 0.5, "train", {"loss": 1.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_training_waits_for_no_tracker(workdir, known, caplog, monkeypatch):
    released = threading.Event()
    notes = Notes()
    notes.describe = lambda facts: released.wait(30)
    monkeypatch.setattr(tracker_observer, "PATIENCE", dict.fromkeys(("finished",), 0.2))
    began = time.perf_counter()
    with tracked(known(notes), workdir) as (observer,):
        for step in range(1000):
            observer.on_record(step, 0.5, "train", {"loss": 1.0})
    assert time.perf_counter() - began < 10
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    released.set()


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted("saved"), "interrupted"), (DataError("gone"), "failed"), (KeyError(1), "failed")],
)
def test_a_run_that_does_not_end_says_so_to_the_tracker(workdir, known, error, status):
    notes = Notes()

    def train():
        with tracked(known(notes), workdir) as (observer,):
            observer.on_record(1, 0.5, "train", {"loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        train()
    assert notes.calls[-1] == ("finish", status)


def test_without_a_record_nothing_is_opened(workdir, known):
    notes = Notes()
    with tracked(known(notes), workdir):
        pass
    assert not notes.opened


def test_only_process_0_tracks(workdir, known, monkeypatch):
    notes = Notes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with tracked(known(notes), workdir) as (observer,):
        observer.on_record(1, 0.5, "train", {"loss": 1.0})
        observer.on_end(workdir)
    assert not notes.opened


def test_trackers_do_not_run_for_each_other(workdir):
    """One that fails does not stop another."""
    bad, good = Notes("log_metrics"), Notes()
    for notes in (bad, good):
        observer = TrackerObserver(notes.row(), "birds", workdir)
        observer.on_record(1, 0.5, "train", {"loss": 1.0})
        observer.close("finished")
    assert good.calls[-1] == ("finish", "finished")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_refused_before_the_start(tiny, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = [*tiny, f"--workdir={tmp_path / 'run'}", f"--config.log.trackers=('{name}',)"]
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: log.trackers=")
    assert f"pip install 'flax_resnet[{name}]'" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_package(tmp_path, monkeypatch, known):
    (tmp_path / "birdtracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    section = known(Notes())
    row = dataclasses.replace(Notes().row(), package="birdtracker")
    monkeypatch.setattr(tracker, "TRACKERS", {"mlflow": row})
    with refused("log.trackers", "mlflow"), tracked(section, tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ({"trackers": ("mlflw",)}, "log.trackers", ("mlflw",)),
        ({"trackers": "mlflow"}, "log.trackers", "mlflow"),
        ({"trackers": ("mlflow", "mlflow")}, "log.trackers", ("mlflow", "mlflow")),
        ({"trackers": (1,)}, "log.trackers", (1,)),
        ({"project": "birds"}, "log.project", "birds"),
        ({"trackers": ("mlflow",), "project": ""}, "log.project", ""),
        ({"trackers": ("wandb",), "project": "ann/birds"}, "log.project", "ann/birds"),
    ],
)
def test_a_wrong_setting_is_one_line(section, key, value):
    with refused(key, value):
        freeze({"log": section})


def test_a_project_of_mlflow_may_be_a_path_and_trackers_do_not_change_the_run():
    config = freeze({"log": {"trackers": ["mlflow"], "project": "/Users/ann/birds"}})
    assert config.log.trackers == ("mlflow",)
    assert differences(freeze({}), config) == []


@pytest.mark.parametrize("observers", [(), (Observer(),)])
def test_without_their_observers_python_refuses_trackers(tmp_path, observers):
    config = freeze({**SECTIONS, "log": {"trackers": ("mlflow",)}})
    source = random_source(32)[0]
    with refused("log.trackers", ("mlflow",)):
        flax_resnet.train(config, tmp_path / "run", train_source=source, observers=observers)
    assert not (tmp_path / "run").exists()
