"""Images that are broken, lie about their format, or vanish while a run reads them; and data that change."""

import shutil
import threading
import time

import pytest
from conftest import saved
from PIL import Image

from flax_resnet import main

pytestmark = pytest.mark.faults


@pytest.fixture
def root(photographs, tmp_path):
    """The photographs, to train on and to evaluate on."""
    (tmp_path / "set").mkdir()
    shutil.copytree(photographs, tmp_path / "set" / "val")
    photographs.rename(tmp_path / "set" / "train")
    return tmp_path / "set"


@pytest.fixture
def bad(root):
    """The files to train on that no run can use."""
    china = root / "train" / "china"
    files = [china / name for name in ("half.jpg", "zero.jpg", "text.png", "bomb.png")]
    content = (china / "0.jpg").read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    files[1].touch()
    files[2].write_text("<html>404</html>")
    Image.new("1", (20_000, 20_000)).save(files[3])  # 50 kB; 1.2 GB as RGB
    # A PNG named .jpg, and a JPEG named .webp, are read.
    Image.open(china / "1.jpg").save(china / "a_png.jpg", "png")
    shutil.copy(china / "2.jpg", china / "a_jpeg.webp")
    return files


def test_bad_and_vanished_images_are_skipped_and_changed_data_are_refused(
    tiny, root, bad, tmp_path, capfd
):
    workdir = tmp_path / "run"
    others = [argument for argument in tiny if not argument.startswith("--data_dir")]
    command = [
        *others, "--config.data.source=folder", f"--config.data.path={root}",
        "--config.data.image_size=16", "--config.train.feed=streaming", "--config.train.batch_size=8",
        "--config.train.eval_batch_size=8", "--config.train.eval_every=100",
        "--config.train.checkpoint_every=4", f"--workdir={workdir}",
    ]  # fmt: skip
    vanished, away = root / "train" / "flower" / "3.jpg", tmp_path / "away.jpg"

    def vanish():
        while not any((workdir / "checkpoints").glob("[0-9]*[0-9]")):
            time.sleep(0.002)
        vanished.rename(away)

    thread = threading.Thread(target=vanish, daemon=True)
    thread.start()
    assert main.main([*command, "--config.train.epochs=20"]) == 0
    thread.join(10)
    found = [line.partition("cannot decode ")[2] for line in capfd.readouterr().err.splitlines()]
    assert {line.split(": skipped")[0] for line in found if line} == {
        str(file) for file in [*bad, vanished]
    }
    assert len(saved(workdir, 40)["bad_images"]) == 5

    longer = [*command, "--config.train.epochs=21"]
    assert main.main(longer) == 5
    away.rename(vanished)
    repaired = root / "train" / "flower" / "5.jpg"
    content = repaired.read_bytes()
    repaired.write_bytes(content + b"\0")
    capfd.readouterr()
    assert main.main(longer) == 5
    assert str(repaired) in capfd.readouterr().err.splitlines()[-1]
    repaired.write_bytes(content)
    assert main.main(longer) == 0
