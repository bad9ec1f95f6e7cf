"""Names of users in pictures: drawn as they are, in fonts that have their characters."""

import numpy as np
import pytest
from conftest import saved_run
from PIL import Image

from flax_resnet.cli import commands, preview, report
from flax_resnet.cli.plots import confusion, text

matplotlib = pytest.importorskip("matplotlib")

# Formulas, TeX, control characters, bytes that are not UTF-8, a long name, and scripts.
NAMES = (
    "US$ and A$", r"$\frac{1$", r"a_b \ {x}^2 %", "two\nlines\tand\x07bell", "caf\udce9", "x" * 300,
    "_hidden", "猫", "قطة", "कुत्ता", "🐈‍⬛ cat", "", " ",
)  # fmt: skip
SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_that_matplotlib_draws_as_it_is(name):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    shown = text.plain(name, 30)
    assert len(shown.splitlines()) <= 1
    assert len(shown.replace(r"\$", "$")) <= 30
    shown.encode()  # raises for surrogates
    drawn, is_formula = Text(text=shown, figure=Figure())._preprocess_math(shown)
    assert not is_formula
    if len(name) < 30 and name.isprintable() and "‍" not in name:
        assert drawn == " ".join(name.split())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".csv"])
def test_a_confusion_matrix_of_any_names_is_written(tmp_path, suffix, caplog):
    from matplotlib import rc_context

    counts = np.ones((len(NAMES), len(NAMES)), int)
    file = confusion.checked(str(tmp_path / f"matrix{suffix}"))
    with rc_context({"text.usetex": True}):  # of a user's matplotlibrc
        confusion.write(file, counts, NAMES, "90% top-1 on $x$ (10 images)")
    assert file.stat().st_size > 500
    if suffix == ".csv":
        assert "café".encode("latin-1") in file.read_bytes()
    else:
        assert len(caplog.messages) <= 1


def test_characters_without_a_font_are_one_line_that_names_a_package(monkeypatch, caplog):
    monkeypatch.setattr(text, "_installed", list)
    with text.drawing(["猫と犬", "cat", "🐈", "कु"]):
        pass
    (line,) = caplog.messages
    assert all(package in line for package in (text.CJK, text.EMOJI, text.OTHERS))
    caplog.clear()
    with text.drawing(["cat", "Žluťoučký кот", "γάτα"]):
        pass
    assert not caplog.messages


def test_a_font_that_has_the_characters_is_used(monkeypatch, caplog):
    """A font of another script stands for the font of Chinese that a machine may lack."""
    known = {"DejaVuSans.ttf": set("ab"), "latin": set("cd"), "chinese": set("猫犬")}
    monkeypatch.setattr(
        text, "_characters", lambda file: known.get(file) or known["DejaVuSans.ttf"]
    )
    monkeypatch.setattr(text, "_installed", lambda: [(n, n) for n in ("latin", "chinese")])
    with text.drawing(["ab", "猫"]):
        assert matplotlib.rcParams["font.family"] == [text.FONT, "chinese"]
    assert not caplog.messages


def test_a_preview_and_a_report_of_any_class_names(photographs, tmp_path, cache_dir, capsys):
    for old, new in (("china", "US$ and A$ 猫"), ("flower", "caf_" + "x" * 200)):
        (photographs / old).rename(photographs / new)
    arguments = [
        f"--config=resnet18:folder={photographs}", "--config.data.image_size=16",
        "--config.train.batch_size=8", "--config.augment.mixup=1.0",
        f"--compilation_cache={cache_dir}", f"--output={tmp_path / 'batch.png'}",
    ]  # fmt: skip
    assert preview.main(arguments) == 0
    data = {"source": "folder", "path": str(photographs), "eval_fraction": 0.5, "image_size": 16}
    names = sorted(folder.name for folder in photographs.iterdir())
    run = saved_run(tmp_path / "run", {"data": data, "model": SHAPE}, names, step=3)
    assert report.main([f"--workdir={run}", f"--compilation_cache={cache_dir}"]) == 0
    for file in (tmp_path / "batch.png", run / "report.png"):
        assert Image.open(file).size > (800, 400)
    assert len(capsys.readouterr().err.splitlines()) <= 2  # a font may be missing
    matrix = tmp_path / "matrix.png"
    call = ["evaluate", f"--workdir={run}", f"--confusion={matrix}"]
    assert commands.main([*call, f"--compilation_cache={cache_dir}"]) == 0
    assert str(matrix) in capsys.readouterr().out
