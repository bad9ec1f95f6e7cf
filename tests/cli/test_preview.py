"""The command `preview`, which draws a training batch."""

import numpy as np
import pytest
from PIL import Image

from flax_resnet import main
from flax_resnet.cli import preview

pytest.importorskip("matplotlib")


def test_a_preview_shows_a_batch_as_training_sees_it(photographs, tmp_path, cache_dir, capsys):
    arguments = [
        f"--config=resnet18:folder={photographs}", "--config.data.image_size=32",
        "--config.train.batch_size=8", "--config.augment.cutmix=1.0", "--step=3",
        f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    output = tmp_path / "pictures" / "batch.png"
    assert preview.main([*arguments, f"--output={output}"]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert Image.open(output).size > (800, 400)
    for wrong, fault in (
        ("--output=batch.txt", "--output=batch.txt"),
        ("--step=-1", "--step=-1"),
        ("--config.train.batch_size=100", "train.batch_size=100"),
    ):
        assert preview.main([*arguments, wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {fault}: ")


def test_a_soft_label_is_shown_as_percentages_of_classes():
    names = ("a", "b", "c")
    assert preview.described(np.array([0.0, 1.0, 0.0]), names) == "b"
    assert preview.described(np.array([0.25, 0.0, 0.75]), names) == "c 75%\na 25%"


def test_every_command_with_a_configuration_uses_data_dir(tmp_path, capsys):
    for run in (
        lambda *flags: main.main([*flags, "--dry_run"]),
        lambda *flags: preview.main([*flags, f"--output={tmp_path / 'x.png'}"]),
    ):
        assert run("--config=resnet18:cifar10", f"--data_dir={tmp_path / 'data'}") == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert str(tmp_path / "data" / "cifar10") in line
