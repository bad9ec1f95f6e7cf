"""A disk that is full or read-only, or a run folder that vanishes: one line, exit code 5, and nothing is lost."""

import shutil
import threading
import time

import pytest
from conftest import records_of
from small_disk import small_disk

import flax_resnet
from flax_resnet import main
from flax_resnet.cli import prepare
from flax_resnet.training.runs.file_checksums import proof_of_damage

pytestmark = pytest.mark.faults


def error_of(capfd):
    """Return the only error line that was printed."""
    error = capfd.readouterr().err
    assert "Traceback" not in error, error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


def when_saved(workdir, call):
    """Call a function as soon as the folder holds a checkpoint."""

    def wait():
        while not any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*")):
            time.sleep(0.001)
        call()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "small", "20m") as found:
        yield found


def command(tiny, workdir):
    return [
        *tiny, "--config.train.epochs=8", "--config.train.checkpoint_every=1",
        "--config.train.eval_every=4", "--config.train.log_every=1", f"--workdir={workdir}",
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_fails_during_a_run_keeps_its_checkpoints(tiny, disk, capfd, fault):
    workdir = disk.path / "run"
    fail, cure = disk.fill, disk.empty
    if fault == "read-only":
        fail, cure = disk.protect, disk.release
    thread = when_saved(workdir, fail)
    assert main.main(command(tiny, workdir)) == 5
    thread.join(10)
    assert str(workdir) in error_of(capfd)
    steps = [folder for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit()]
    assert steps
    assert not any(map(proof_of_damage, steps))
    assert main.main(command(tiny, workdir)) == 5
    assert str(workdir) in error_of(capfd)
    cure()
    assert main.main(command(tiny, workdir)) == 0
    assert "going on from checkpoint" in capfd.readouterr().err
    assert [r["step"] for r in records_of(workdir, "train")] == list(range(1, 41))


def test_a_run_folder_that_is_removed_is_an_error(tiny, tmp_path, capfd):
    workdir = tmp_path / "run"
    thread = when_saved(workdir, lambda: workdir.rename(tmp_path / "away"))
    assert main.main(command(tiny, workdir)) == 5
    thread.join(10)
    assert str(workdir) in error_of(capfd)
    shutil.rmtree(workdir, ignore_errors=True)
    (tmp_path / "away").rename(workdir)
    assert flax_resnet.load(workdir).step > 0


def test_a_full_compilation_cache_costs_only_the_cache(tiny, disk, tmp_path, capfd):
    disk.fill()
    assert (
        main.main([*tiny, f"--compilation_cache={disk.path}/xla", f"--workdir={tmp_path}/run"]) == 0
    )
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("size", ["100k", "560k"])
def test_preparation_goes_on_when_space_is_back(tmp_path, capfd, size):
    with small_disk(tmp_path / "small", size) as disk:
        call = ["--name=digits", f"--data_dir={disk.path}"]
        (disk.path / "digits" / "incomplete.ABCDEF_1.0.0").mkdir(
            parents=True
        )  # of a killed process
        assert prepare.main(call) == 5
        assert error_of(capfd)
        assert not list((disk.path / "digits").iterdir())
        disk.mount("size=10m")
        assert prepare.main(call) == 0
        assert [entry.name for entry in (disk.path / "digits").iterdir()] == ["1.0.0"]


def test_packing_goes_on_when_space_is_back(photographs, tmp_path, capfd):
    with small_disk(tmp_path / "small", "140k") as disk:
        call = [
            "--pack=packed",
            f"--path={photographs}",
            f"--data_dir={disk.path}",
            "--shard_size=2",
        ]
        assert prepare.main(call) == 5
        assert str(disk.path) in error_of(capfd)
        finished = {f.name: f.stat().st_ino for f in disk.path.rglob("packed-*")}
        assert finished
        disk.mount("size=10m")
        assert prepare.main(call) == 0
        files = {f.name: f.stat().st_ino for f in disk.path.rglob("packed-*")}
        assert finished.items() < files.items()
