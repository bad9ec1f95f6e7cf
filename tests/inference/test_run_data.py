"""The images of a run in other places, run folders that cannot be written, and absolute paths."""

import json
import shutil

import pytest
from conftest import saved_run

from flax_resnet import main
from flax_resnet.cli import commands
from flax_resnet.config import freeze
from flax_resnet.data.fingerprint import fingerprint_of
from flax_resnet.errors import WorkdirError
from flax_resnet.training.absolute_paths import with_absolute_paths
from flax_resnet.training.runs.folder import RunFolder


@pytest.fixture
def run(photographs, tmp_path):
    """A run on photographs without splits, of which a half is held out. They lie at photographs/ beside it."""
    sections = {
        "data": {
            "source": "folder", "path": str(photographs), "image_size": 16, "eval_fraction": 0.5,
        },
        "model": {"name": "resnet20", "depths": (1, 1, 1)},
    }  # fmt: skip
    from flax_resnet.data.open import open_source

    source = open_source(freeze(sections).data, train=True)
    more = {"num_examples": len(source), "fingerprint": fingerprint_of(source)}
    return saved_run(tmp_path / "run", sections, ["china", "flower"], step=3, **more)


def evaluated(capsys, *arguments):
    """Run `evaluate` and return the printed number of images, and the messages."""
    assert commands.main(["evaluate", *arguments]) == 0
    out, err = capsys.readouterr()
    return int(out.split("(")[1].split(" images")[0]), err


def test_a_moved_folder_keeps_its_split_and_another_is_used_whole(
    run, photographs, tmp_path, capsys
):
    command = f"--workdir={run}"
    held_out, _ = evaluated(capsys, command)
    assert 0 < held_out < 12
    moved = photographs.rename(tmp_path / "moved")
    assert commands.main(["evaluate", command]) == 4
    assert str(photographs) in capsys.readouterr().err
    count, err = evaluated(capsys, command, f"--dataset={moved}")
    assert count == held_out
    assert "the images that the run was trained on" in err
    other = tmp_path / "other"
    shutil.copytree(moved, other)
    (other / "china" / "0.jpg").rename(other / "china" / "new.jpg")
    shutil.copy(other / "china" / "1.jpg", other / "china" / "newer.jpg")
    shutil.copy(other / "china" / "1.jpg", other / "china" / "newest.jpg")
    count, err = evaluated(capsys, command, f"--dataset={other}")
    assert count == 14
    assert "not the images" in err
    record = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert (record["dataset"], record["count"]) == (str(other), 14)
    assert commands.main(["report", command, f"--dataset={moved}"]) == 0
    assert commands.main(["evaluate", command, f"--dataset={tmp_path / 'nothing'}"]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --dataset=")
    moved.rename(photographs)
    for own in ((), (f"--dataset={photographs}",)):
        assert commands.main(["evaluate", command, *own, "--split=nope"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: --split=nope: ")


def test_evaluate_and_probe_print_their_results_before_they_fail_to_write_them(
    run, monkeypatch, capsys
):
    """A folder that cannot be written, as on a read-only file system."""

    def read_only(self, name, record):
        raise WorkdirError("cannot be written: Read-only file system", key=self.path)

    monkeypatch.setattr(RunFolder, "append_record", read_only)
    for command, shown in (("evaluate", "top-1"), ("probe", "neighbours")):
        options = ["--k=1"] if command == "probe" else []
        assert commands.main([command, f"--workdir={run}", *options]) == 5
        out, err = capsys.readouterr()
        assert shown in out
        assert err.splitlines()[-1].startswith(f"error: {run}: ")


def test_paths_are_stored_as_absolute_ones(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("photographs", "~/photographs", "./run/../photographs"):
        (tmp_path / "run").mkdir(exist_ok=True)
        config = freeze({"data": {"source": "folder", "path": path}})
        assert with_absolute_paths(config).data.path == str(photographs)
    teacher = {"teacher": "./run", "teacher_model": ""}
    stored = with_absolute_paths(freeze({"data": {"data_dir": "tfds"}, "distill": teacher}))
    assert stored.data.data_dir == str(tmp_path / "tfds")
    assert stored.distill.teacher == str(tmp_path / "run")
    hub = freeze({"distill": {**teacher, "teacher": "resnet18.a1_in1k"}})
    assert with_absolute_paths(hub).distill.teacher == "resnet18.a1_in1k"
    link = tmp_path / "link"
    link.symlink_to(photographs)  # it may point elsewhere later
    config = freeze({"data": {"source": "folder", "path": "link"}})
    assert with_absolute_paths(config).data.path == str(link)


@pytest.mark.slow
def test_a_run_is_resumed_and_evaluated_from_another_folder(
    photographs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = [
        "--config=resnet18:folder=photographs", "--config.model.widths=(4,8,16,32)",
        "--config.model.depths=(1,1,1,1)", "--config.data.image_size=32", "--config.data.eval_fraction=0.3",
        "--config.train.batch_size=8", "--config.schedule.warmup=0", "--noreport",
    ]  # fmt: skip
    assert main.main([*command, "--workdir=run", "--config.train.epochs=1"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluated(capsys, "--workdir=../run")[0] > 0
    command[0] = "--config=resnet18:folder=../photographs"
    assert main.main([*command, "--workdir=../run", "--config.train.epochs=2"]) == 0
