"""The benchmark of the input pipeline: what it refuses."""

import sys
import zipfile

import pytest

from benchmarks.input import input_speed


@pytest.mark.parametrize("archive", ["", "absent.zip", "no.zip"])
def test_an_archive_that_is_none_is_one_line(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.zip").write_text("not a zip")
    arguments = ["cifar", f"--archive={archive}", f"--folder={tmp_path / 'made'}"]
    monkeypatch.setattr(sys, "argv", ["input_speed", *arguments])
    assert input_speed.main() == (4 if archive else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --archive={archive}: ")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("fault", ["empty", "damaged"])
def test_an_archive_of_something_else_leaves_nothing_behind(fault, tmp_path, monkeypatch, capsys):
    file = tmp_path / "some.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for split in ("train", "test") if fault == "damaged" else ():
            archive.writestr(f"{split}/a/1.jpg", b"x" * 1000)
    if fault == "damaged":
        file.write_bytes(file.read_bytes().replace(b"xxx", b"xyx"))
    arguments = ["cifar", f"--archive={file}", f"--folder={tmp_path / 'made'}"]
    monkeypatch.setattr(sys, "argv", ["input_speed", *arguments])
    assert input_speed.main() == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --archive={file}: ")
    assert not (tmp_path / "made" / "cifar").exists()
