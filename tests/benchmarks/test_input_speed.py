"""The benchmark of the input pipeline: what it refuses."""

import sys

import pytest

from benchmarks.input import input_speed


@pytest.mark.parametrize("archive", ["", "absent.zip", "no.zip"])
def test_an_archive_that_is_none_is_one_line(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.zip").write_text("not a zip")
    arguments = ["cifar", f"--archive={archive}", f"--folder={tmp_path / 'made'}"]
    monkeypatch.setattr(sys, "argv", ["input_speed", *arguments])
    with pytest.raises(SystemExit) as stopped:
        input_speed.main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"--archive={archive}: " in last
    assert not (tmp_path / "made").exists()
