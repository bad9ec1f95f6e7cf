"""MLflow with a store in SQLite, and W&B offline: what arrives there is read back from their files."""

import contextlib
import json
import struct
import time

import pytest
from untrained import random_source

import flax_resnet
from flax_resnet import main
from flax_resnet.cli.tracker_observer import tracked
from flax_resnet.config import flatten, freeze
from flax_resnet.errors import Interrupted
from flax_resnet.settings import UNSET
from flax_resnet.training.observer import Observer
from flax_resnet.training.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries that these libraries use
]

SECTIONS = {
    "data": {"source": "python", "image_size": 8},
    "model": {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"},
    "train": {"batch_size": 16, "epochs": 1, "log_every": 1},
}


class Stopping(Observer):
    """Sends a signal after the first evaluation, as a scheduler does."""

    def on_evaluation(self, step, variables):
        import signal

        signal.raise_signal(signal.SIGUSR1)


def train(workdir, trackers, *more, epochs=1, **log):
    config = freeze({**SECTIONS, "train": {**SECTIONS["train"], "epochs": epochs},
                     "log": {"trackers": trackers, **log}})  # fmt: skip
    sources = {"train_source": random_source(32)[0], "eval_source": random_source(16, seed=1)[0]}
    with tracked(config.log, workdir) as observers:
        flax_resnet.train(config, workdir, observers=[*more, *observers], **sources)


@contextlib.contextmanager
def environment(folder, **variables):
    """No telemetry, no network, and all files in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("DO_NOT_TRACK", "true")
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def mlflow_env(tmp_path_factory):
    pytest.importorskip("mlflow", reason="pip install 'flax_resnet[mlflow]'")
    folder = tmp_path_factory.mktemp("mlflow")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/store.db"}
    with environment(folder, MLFLOW_DISABLE_TELEMETRY="true", **store):
        yield folder


@pytest.fixture(scope="module")
def wandb_env(tmp_path_factory):
    pytest.importorskip("wandb", reason="pip install 'flax_resnet[wandb]'")
    folder = tmp_path_factory.mktemp("wandb")
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true"}
    with environment(folder, WANDB_MODE="offline", **quiet):
        yield folder


def expected(workdir):
    """The settings and the records of a run as trackers shall have them."""
    folder = RunFolder.at(workdir)
    settings = {k: v for k, v in flatten(folder.read_config()).items() if v is not UNSET}
    metrics = {}
    for record in folder.read_records():
        split = record.pop("split")
        for name, value in record.items():
            if name not in ("step", "epoch"):
                metrics.setdefault(f"{split}/{name}", []).append((record["step"], value))
    return settings, metrics


def test_mlflow_has_parameters_metrics_files_and_paths(mlflow_env):
    from mlflow import MlflowClient

    workdir = mlflow_env / "first"
    train(workdir, ("mlflow",), project="birds")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("birds")
    (run,) = client.search_runs([experiment.experiment_id])
    settings, metrics = expected(workdir)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params == {key: str(value) for key, value in settings.items()}
    for name, points in metrics.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == points
    assert {"train/loss", "train/learning_rate", "test/top1"} <= metrics.keys()
    assert run.data.tags["checkpoints"] == str(workdir / "checkpoints")
    assert run.data.tags["best_checkpoint"] == str(workdir / "checkpoints" / "2")
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "summary.txt", "results.csv"} <= files
    copy = client.download_artifacts(run.info.run_id, "summary.txt", str(mlflow_env))
    with open(copy, encoding="utf-8") as text:
        assert text.read() == (workdir / "summary.txt").read_text()


def test_an_interrupted_run_goes_on_in_its_run_of_mlflow(mlflow_env):
    from mlflow import MlflowClient

    workdir, client = mlflow_env / "second", MlflowClient()
    with pytest.raises(Interrupted):
        train(workdir, ("mlflow",), Stopping(), epochs=2, project="fish")
    number = client.get_experiment_by_name("fish").experiment_id
    (run,) = client.search_runs([number])
    assert run.info.status == "KILLED"
    train(workdir, ("mlflow",), epochs=3, project="fish")  # longer than before
    (run,) = client.search_runs([number])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "test/loss")]
    assert steps == [2, 4, 6]
    # A parameter of MLflow cannot change, so a tag has the new value.
    assert (run.data.params["train.epochs"], run.data.tags["train.epochs"]) == ("2", "3")
    client.delete_run(run.info.run_id)
    train(workdir, ("mlflow",), epochs=4, project="fish")
    (other,) = client.search_runs([number])
    assert other.info.run_id != run.info.run_id
    assert other.data.params["train.epochs"] == "4"


def test_mlflow_takes_the_names_of_split_expressions(mlflow_env):
    from mlflow import MlflowClient

    from flax_resnet.trackers.tracker import TRACKERS, TrackedRun

    opened = TRACKERS["mlflow"].open(TrackedRun("odd", "run", mlflow_env, {"long": "x" * 9000}))
    opened.log_metrics(3, {"test[:50%]+a/top1": 0.5, "train/loss": float("nan")})
    opened.finish("failed")
    run = MlflowClient().get_run(opened.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["test__50___a/top1"] == 0.5


def wandb_records(workdir):
    """The records of the offline runs of a workdir, by kind, one dictionary for each start."""
    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    until = time.monotonic() + 30
    # W&B's own process writes the end of the file after `finish` has returned.
    while not all("exit" in records_of(file) for file in files) and time.monotonic() < until:
        time.sleep(0.1)
    return [records_of(file) for file in files]


def records_of(file):
    """The records of a file of W&B by kind.

    It has the format of LevelDB's log: blocks of 32 KiB with pieces (checksum, length, kind).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, kinds = file.read_bytes(), 7, b"", {}
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):  # still being written
            break
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record, whole = Record.FromString(whole), b""
            name = record.WhichOneof("record_type")
            kinds.setdefault(name, []).append(getattr(record, name))
    return kinds


def values_of(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_has_config_metrics_files_and_paths(wandb_env):
    workdir = wandb_env / "first"
    train(workdir, ("wandb",), project="birds")
    (kinds,) = wandb_records(workdir)
    (run,) = kinds["run"]
    assert (run.project, run.display_name) == ("birds", "first")
    settings, metrics = expected(workdir)
    config = values_of(update for record in kinds["config"] for update in record.update)
    assert config == json.loads(json.dumps(settings))
    history = [values_of(record.item) for record in kinds["history"]]
    for name, points in metrics.items():
        assert [(row["step"], row[name]) for row in history if name in row] == points
    assert any(metric.step_metric == "step" for metric in kinds["metric"])
    summary = values_of(update for record in kinds["summary"] for update in record.update)
    assert summary["checkpoints"] == str(workdir / "checkpoints")
    assert summary["best_checkpoint"] == str(workdir / "checkpoints" / "2")
    (files,) = workdir.glob("wandb/offline-run-*/files")
    assert (files / "summary.txt").read_text() == (workdir / "summary.txt").read_text()
    assert not (files / "summary.txt").is_symlink()
    sent = {file.path for record in kinds["files"] for file in record.files}
    assert {"config.json", "summary.txt", "results.csv"} <= sent
    assert [record.exit_code for record in kinds["exit"]] == [0]


def test_an_interrupted_run_goes_on_in_its_run_of_wandb(wandb_env):
    workdir = wandb_env / "second"
    with pytest.raises(Interrupted):
        train(workdir, ("wandb",), Stopping(), epochs=2)
    time.sleep(1.1)  # W&B names the folder of a start by the second
    train(workdir, ("wandb",), epochs=3)
    first, second = wandb_records(workdir)
    assert first["run"][0].run_id == second["run"][0].run_id
    assert first["preempting"]
    assert "preempting" not in second
    assert [kinds["exit"][0].exit_code for kinds in (first, second)] == [75, 0]
    steps = [values_of(record.item)["step"] for record in second["history"]]
    assert min(steps) > max(values_of(record.item)["step"] for record in first["history"])
    config = values_of(update for record in second["config"] for update in record.update)
    assert config["train.epochs"] == 3


def test_wandb_without_a_login_costs_one_line(wandb_env, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb

    wandb.teardown()  # it keeps the variables that it has read
    train(wandb_env / "third", ("wandb",))
    wandb.teardown()
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "WANDB_MODE=offline" in warning.getMessage()  # said before W&B could ask on a terminal
    assert (wandb_env / "third" / "summary.txt").is_file()


def test_the_command_passes_on_the_report(mlflow_env, wandb_env, tiny, tmp_path):
    from mlflow import MlflowClient

    workdir = tmp_path / "run"
    command = [flag for flag in tiny if flag != "--noreport"]
    command += [f"--workdir={workdir}", "--config.log.trackers=('mlflow','wandb')"]
    assert main.main(command) == 0
    client = MlflowClient()
    run_id = (workdir / ".mlflow_run").read_text()
    files = {file.path: file.file_size for file in client.list_artifacts(run_id)}
    (copies,) = workdir.glob("wandb/offline-run-*/files")
    for name in ("report.html", "report.png", "classes.csv"):
        assert files[name] == (workdir / name).stat().st_size
        assert (copies / name).read_bytes() == (workdir / name).read_bytes()
