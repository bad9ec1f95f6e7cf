"""Damaged run folders and full disks: an error of one line, and no saved data is lost."""

import json
import shutil
import threading

import jax
import numpy as np
import pytest
import tensorflow as tf
from conftest import refused, saved_run

from flax_resnet.cli import report
from flax_resnet.errors import CheckpointError, WorkdirError
from flax_resnet.training import sharding
from flax_resnet.training.runs.checkpoint import Checkpoints
from flax_resnet.training.runs.folder import CONFIG, METRICS, RunFolder
from flax_resnet.training.runs.metadata import SCHEMA, RunMetadata
from flax_resnet.training.runs.writers import record_writer

SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
RECORDS = [
    {"step": step, "epoch": step / 2, "split": split, "loss": 1.0, "top1": 0.5}
    for step, split in ((1, "train"), (2, "test"), (3, "train"))
]


@pytest.fixture
def run(tmp_path):
    return saved_run(tmp_path / "run", {"model": SHAPE}, [str(n) for n in range(10)], step=3)


def write_records(run, *lines):
    content = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    (run / METRICS).write_bytes(content)
    return content


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "ep', b"\xff\xfe", b"\0" * 9, b"", b"7", b"[1, 2]", b"null",
        pytest.param(b"9" * 5000, id="long"), pytest.param(b"[" * 100_000, id="deep"),
        *({key: value for key, value in RECORDS[1].items() if key != left_out} for left_out in RECORDS[1]),
        {**RECORDS[1], "step": "2"}, {**RECORDS[1], "step": 2.5}, {**RECORDS[1], "split": 3},
        {**RECORDS[1], "top1": None},
    ],
)  # fmt: skip
def test_an_invalid_record_is_reported_with_its_line_and_kept(run, line):
    before = write_records(run, RECORDS[0], line, RECORDS[2])
    for read in (RunFolder.at(run).read_records, lambda: RunFolder.at(run).cut_records(1)):
        with refused(run / METRICS, kind=WorkdirError) as error:
            read()
        assert "line 2" in error.value.problem
        assert "delete the line" in error.value.cure
    assert (run / METRICS).read_bytes() == before


@pytest.mark.parametrize("torn", [b'{"step": 3, "ep', b"\xff\xfe", b"\0" * 9])
def test_an_incomplete_last_record_is_ignored(run, torn):
    (run / METRICS).write_bytes(write_records(run, *RECORDS[:2]) + torn)
    assert RunFolder.at(run).read_records() == RECORDS[:2]


def test_a_folder_in_place_of_the_records_is_one_line(run, data_dir, capsys):
    (run / METRICS).mkdir()
    with refused(run / METRICS, kind=WorkdirError):
        RunFolder.at(run).read_records()
    assert report.main([f"--workdir={run}", f"--data_dir={data_dir}"]) == 5
    assert capsys.readouterr().err.startswith(f"error: {run / METRICS}: cannot be read")


def test_a_report_without_records_prints_no_warning(run, data_dir, capsys):
    assert report.main([f"--workdir={run}", f"--data_dir={data_dir}"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "cannot be read"),
        pytest.param("[" * 100_000, "cannot be read", id="deep"),
        pytest.param("9" * 5000, "cannot be read", id="long"),
        ("[1, 2]", "is not a configuration"),
        ('{"schema": SCHEMA, "model": 3}', "model=3: must be a section of settings"),
        ('{"schema": SCHEMA, "train": {"batch_size": -1}}', "train.batch_size=-1: must be"),
        ('{"schema": SCHEMA, "train": {"batchsize": 1}}', "train.batchsize: unknown setting"),
    ],
)
def test_an_invalid_stored_configuration_is_reported_with_its_file(run, content, problem):
    (run / CONFIG).write_text(content.replace("SCHEMA", str(SCHEMA)))
    with refused(run / CONFIG, kind=WorkdirError) as error:
        RunFolder.at(run).read_config()
    assert problem in error.value.problem
    assert "another workdir" in error.value.cure


def test_a_file_in_place_of_the_checkpoints_is_refused_before_training(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")
    with refused(run / "checkpoints", kind=WorkdirError):
        Checkpoints(run)


def test_records_that_cannot_be_written_are_one_line(run, monkeypatch):
    writer = record_writer(RunFolder.at(run), 0)
    writer._file.close()
    monkeypatch.setattr(writer, "_file", open("/dev/full", "w", buffering=1))  # noqa: SIM115
    with refused(run, kind=WorkdirError) as error:
        writer.write(1, 0.5, "train", {"loss": 1.0, "top1": 0.5})
    assert "No space left" in error.value.problem
    with refused(run, kind=WorkdirError):
        writer.close()


def test_an_event_file_that_cannot_be_written_is_one_line(run, monkeypatch):
    writer = record_writer(RunFolder.at(run), 0)

    def fail():
        raise tf.errors.OutOfRangeError(None, None, "File too large\n\tFailed to flush 4 events")

    monkeypatch.setattr(writer._tensorboard, "flush", fail)
    with refused(run, kind=WorkdirError) as error:
        writer.close()
    assert "File too large" in error.value.problem
    assert writer._file.closed


def a_state():
    return jax.device_put({"w": np.ones(9)}, sharding.replicated(sharding.make_mesh()))


def test_a_failed_save_leaves_no_waiting_thread(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("x")
    before = set(threading.enumerate())
    with refused(tmp_path / "checkpoints" / "1", kind=CheckpointError):
        checkpoints.save(1, a_state(), RunMetadata({}, ("a",), 1))
    assert not [
        thread for thread in set(threading.enumerate()) - before if "Signaling" in repr(thread)
    ]


@pytest.mark.parametrize("size", [0, 10])
def test_the_error_for_a_damaged_checkpoint_has_only_the_innermost_reason(run, size):
    arrays = [file for file in (run / "checkpoints").rglob("d/*") if file.is_file()]
    for file in arrays:
        file.write_bytes(file.read_bytes()[:size])
    from flax_resnet import load

    with refused(run.resolve() / "checkpoints" / "3" / "state", kind=CheckpointError) as error:
        load(run)
    assert "driver" not in error.value.problem
    assert len(error.value.problem) < 150


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_training(tmp_path):
    """TensorStore cannot write there."""
    folder = tmp_path / "caf\udce9"
    with refused(folder, kind=WorkdirError):
        RunFolder.at(folder).read_config()
    assert RunFolder.at(tmp_path / "café 猫").read_config() is None
