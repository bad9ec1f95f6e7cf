"""Errors of users on the command line: the exit code, a message of one line, and no lost files."""

import os
import pathlib
import shutil

import pytest
from conftest import saved

from flax_resnet import main
from flax_resnet.cli import commands

DIVERGED, DATA, DISK = 3, 4, 5  # exit codes; 2 is for a wrong command or configuration


@pytest.fixture
def refuse(capsys):
    """A function that runs the command, and expects an exit code and one line about `fault` with all names."""

    def run(arguments, fault, *names, code=2):
        assert main.main(arguments) == code
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith(f"error: {fault}: ")
        for name in names:
            assert name in line
        assert "Traceback" not in line

    return run


@pytest.mark.parametrize(
    ("arguments", "fault", "names"),
    [
        ([], "--config", []),
        (["--config=nowhere.py"], "--config=nowhere.py", ["resnet18", "wrn28_10"]),
        (["--config=configs/resnet81.py"], "--config=configs/resnet81.py", ["'resnet18'"]),
        (["--config=setup.cfg"], "--config", ["SyntaxError", "setup.cfg"]),
        (["--config"], "--config", ["Missing"]),
        (["--config=resnet18:digit"], "configs/resnet18.py='digit'", ["'digits'"]),
        (["--config=resnet18:digits=3"], "configs/resnet18.py='digits=3'", []),
        (["--config=resnet18", "--config.train.batchsize=3"], "train.batchsize", ["'train.batch_size'"]),
        (["--config=resnet18", "--config.nothing.at_all=3"], "nothing.at_all", []),
        (["--config=resnet18", "--config.train.batch_size=many"], "train.batch_size='many'", ["number, at l"]),
        (["--config=resnet18", "--config.train.batch_size", "2.5"], "train.batch_size='2.5'", ["whole number"]),
        (["--config=resnet18", "--config.augment.eval_flip=perhaps"], "augment.eval_flip='perhaps'", ["False"]),
        (["--config=resnet18", "--config.augment.mean=(1,"], "augment.mean='(1,'", ["tuple"]),
        (["--config=resnet18", "--config.train.batch_size=0"], "train.batch_size=0", []),
        (["--config=resnet18", "--config.optimizer.learning_rate=-1"], "optimizer.learning_rate=-1", []),
        (["--config=resnet18", "--config.optimizer.learning_rate=nan"], "optimizer.learning_rate=nan", []),
        (["--config=resnet18", "--config.data.image_size=0"], "data.image_size=0", ["model.pretrained"]),
        (["--config=resnet18", "--dry_run=x: y"], "--dry_run=x: y", ["must be true or false"]),
        (["--config=resnet18", "--workdri=x"], "--workdri", ["'--workdir'"]),
        (["--config=resnet18", "--resume=maybe", "--workdir=x"], "--resume=maybe", ["allowed: auto, force"]),
        (["--config=resnet18", "stray"], "stray", []),
        (["--config=resnet18"], "--workdir", []),
    ],
)  # fmt: skip
def test_errors_in_flags_and_configuration(refuse, arguments, fault, names):
    refuse(arguments, fault, *names)


def test_errors_in_flag_files(refuse, tmp_path):
    file, nested, absent = tmp_path / "flags", tmp_path / "nested", tmp_path / "none"
    nested.write_text(f"--flagfile={file}\n")
    for given, outer in (([f"--flagfile={file}"], file), (["--flagfile", str(nested)], nested)):
        file.write_bytes(b"\xff\xfe--dry_run\n")
        refuse(given, f"--flagfile={outer}", "utf-8")
        file.write_bytes(b"--workdri=x\n")
        refuse(given, "--workdri")
        file.write_bytes(b"--config=resnet18\n--config.train.batch_size=many")
        refuse(given, "train.batch_size='many'", "whole number")
    refuse([f"--flagfile={absent}"], f"--flagfile={absent}")
    refuse(["--flagfile"], "--flagfile")


@pytest.mark.parametrize(
    ("override", "fault", "names"),
    [
        ("model.name=resnet81", "model.name='resnet81'", ["'resnet18'"]),
        ("data.name=digit", "data.name='digit'", ["'digits'"]),
        ("data.name=cifar10", "data.name='cifar10'", ["python -m flax_resnet prepare --name=cifar10"]),
        ("data.name=imagenet2012", "data.name='imagenet2012'", ["ILSVRC2012_img_train.tar", "downloads/manual"]),
        ("data.eval_split=valid", "data.eval_split='valid'", ["train, test"]),
        ("train.batch_size=1438", "train.batch_size=1438", ["1437"]),
        ("train.batch_size=12", "train.batch_size=12", ["8 devices"]),
        ("model.num_classes=9", "model.num_classes=9", ["10"]),
        ("train.batch_size=8", "train.batch_size", ["model.norm_groups"]),
        ("model.act=rellu", "model.act='rellu'", ["'relu'"]),
        ("model.norm=frozen", "model.norm_scope='local'", ["'frozen'"]),
        ("model.name=vgg11", "model.depths=(1, 1, 1, 1)", ["vgg11"]),
    ],
)  # fmt: skip
def test_errors_in_models_and_datasets(refuse, tiny, tmp_path, override, fault, names):
    if "batch_size=8" in override:  # one image per device, whose last feature map is 1x1
        tiny = [*tiny, "--config.model.norm_scope=local"]
    if "frozen" in override:
        tiny = [*tiny, "--config.model.norm_scope=local"]
    if "vgg11" in override:  # else the recipe's stem does not apply, and a line says so
        tiny = [*tiny, "--config.model.stem=cifar"]
    code = DATA if override.startswith("data.") else 2
    arguments = [*tiny, f"--workdir={tmp_path / 'run'}", f"--config.{override}"]
    refuse(arguments, fault, *names, code=code)
    assert not (tmp_path / "run").exists()


def test_the_home_folder_of_an_unknown_user_is_refused(tiny, tmp_path, capsys):
    override = "--config.model.pretrained=~no-such-user/w.pth"
    assert main.main([*tiny, f"--workdir={tmp_path / 'run'}", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "~" in line
    assert not (tmp_path / "run").exists()


def test_errors_in_image_folders(refuse, tmp_path, photographs, cache_dir):
    def arguments(path):
        return [f"--config=resnet18:folder={path}", f"--workdir={tmp_path / 'run'}"]

    (tmp_path / "empty").mkdir()
    refuse(arguments(tmp_path / "absent"), f"data.path='{tmp_path / 'absent'}'", code=DATA)
    refuse(arguments(tmp_path / "empty"), tmp_path / "empty", code=DATA)
    refuse(arguments(""), "configs/resnet18.py='folder='")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "b").mkdir()
    refuse(arguments(tmp_path / "hollow"), tmp_path / "hollow" / "a", code=DATA)
    shutil.rmtree(photographs / "china")
    refuse(arguments(photographs), photographs, "'flower'", code=DATA)


def test_too_many_unreadable_images_stop_the_run(tmp_path, photographs, cache_dir, capsys):
    for file in (photographs / "flower").iterdir():
        file.write_bytes(file.read_bytes()[:300])
    arguments = [
        f"--config=resnet18:folder={photographs}", f"--workdir={tmp_path / 'run'}",
        "--config.data.max_bad_images=0", "--config.train.batch_size=8", "--config.model.widths=(4,8,16,32)",
        "--config.data.image_size=32", "--config.data.eval_fraction=0.1", f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    assert main.main(arguments) == DATA
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {photographs / 'flower'}")
    assert "data.max_bad_images=0" in line


def test_invalid_workdirs_are_refused_and_unchanged(refuse, tiny, tmp_path):
    (tmp_path / "file").write_text("x")
    refuse([*tiny, f"--workdir={tmp_path / 'file'}"], tmp_path / "file", code=DISK)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    refuse([*tiny, f"--workdir={tmp_path / 'other'}"], tmp_path / "other", code=DISK)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    (tmp_path / "torn").mkdir()
    for content in (b"{", b"\xff\xfe{}"):
        file = tmp_path / "torn" / "config.json"
        file.write_bytes(content)
        refuse([*tiny, f"--workdir={tmp_path / 'torn'}"], file, code=DISK)


def test_a_read_only_workdir_is_refused(refuse, tiny, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):  # root can write there, but not to /sys
        locked = pathlib.Path("/sys")
    refuse([*tiny, f"--workdir={locked / 'run'}"], locked / "run", code=DISK)


def test_a_relative_workdir_works(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main([*tiny, "--workdir=here/run", "--config.train.epochs=1"]) == 0
    assert (tmp_path / "here" / "run" / "summary.txt").exists()


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = [*tiny, f"--workdir={workdir}", "--config.schedule.name=constant"]
    assert main.main([*arguments, "--config.train.epochs=1"]) == 0
    before = saved(workdir, 5)["checksums"]
    capsys.readouterr()
    wild = ["--resume=force", "--config.optimizer.learning_rate=1e30"]
    assert main.main([*arguments, *wild]) == DIVERGED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    for name in ("at step", "checkpoint 5 in", str(workdir), "optimizer.learning_rate=1e+30"):
        assert name in line
    assert saved(workdir, 5)["checksums"] == before
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] == ["5"]


def test_a_bug_keeps_its_traceback(tiny, tmp_path, monkeypatch):
    from flax_resnet.training import experiment

    monkeypatch.setattr(experiment, "open_source", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main([*tiny, f"--workdir={tmp_path / 'run'}"])


def test_the_console_script_runs_commands_and_refuses_unknown_ones(capsys):
    assert commands.main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert commands.main(["evalute"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: evalute: ")
    assert "'evaluate'" in line
    for name in ("train", "main"):
        assert commands.main([name, "--config=nowhere"]) == 2
    assert commands.main(["evaluate", "--help"]) == 0
    assert "--checkpoint" in capsys.readouterr().out
    assert commands.main(["evaluate", "--workdir=/nowhere"]) == DISK
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /nowhere: ")


def test_two_commands_in_one_process_do_not_clash(capsys):
    for _ in range(2):
        assert main.main(["--config=resnet18", "--config.train.batch_size=0"]) == 2
        assert commands.main(["evaluate"]) == 2


def test_prepare_through_the_console_script(capsys, tmp_path):
    assert commands.main(["prepare", "--name=digits", f"--data_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "digits" / "1.0.0")
    for arguments, code, *names in (
        ([], 2, "--name: "),
        (["--name=digitz"], DATA, "'digitz'", "'digits'"),
        (["--name=imagenet2012", f"--data_dir={tmp_path}"], DATA, "ILSVRC2012_img_train.tar"),
    ):
        assert commands.main(["prepare", *arguments]) == code
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert all(name in line for name in names)


def test_an_intact_checkpoint_of_another_network_is_not_moved(refuse, tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = [*tiny, f"--workdir={workdir}", "--config.train.epochs=1"]
    assert main.main(arguments) == 0
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    capsys.readouterr()
    wider = [a.replace("widths=(4,8,", "widths=(8,8,") for a in arguments]
    wider += ["--resume=force", "--config.train.epochs=2"]
    assert main.main(wider) == DISK
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {workdir / 'checkpoints' / '5'}: ")
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    # A split that the finished run was not evaluated on is evaluated now.
    assert main.main([*arguments, "--resume=force", "--config.data.eval_split=train[:100]"]) == 0
    assert "on train[:100]" in capsys.readouterr().err


def test_an_exception_of_a_configuration_file_is_named(refuse, tmp_path):
    """Not the traceback, which ml_collections puts into its message."""
    file = tmp_path / "recipe.py"
    file.write_text("def get_config():\n    return {}['absent']\n")
    refuse([f"--config={file}", "--dry_run"], "--config", "KeyError", "absent")
