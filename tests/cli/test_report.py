"""The picture of a run: its images are upright, few are in memory at once, and unreadable ones are left out."""

import weakref

import numpy as np
import pytest
from conftest import saved_run
from PIL import Image

from flax_resnet.cli import report
from flax_resnet.data import images
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source

SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}


@pytest.fixture
def run(tmp_path, photographs):
    """An untrained run on photographs, one of them turned by its EXIF orientation, and one of 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = photographs / "china" / "0.jpg"
    with Image.open(file) as image:
        image.save(photographs / "china" / "turned.jpg", exif=exif)
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(photographs / "flower" / "deep.png")
    data = {"source": "folder", "path": str(photographs), "eval_fraction": 0.99, "image_size": 16}
    sections = {"data": data, "model": SHAPE}
    return saved_run(tmp_path / "run", sections, ["china", "flower"], step=3), Data(**data)


def test_a_report_judges_the_pixels_of_the_files(run):
    from flax_resnet.inference.classifier import load

    classifier, source = load(run[0]), open_source(run[1], train=False)
    count = len(source)
    files = [source.describe(index) for index in range(count)]
    expected = classifier.predict(files)
    drawn = report.judge(classifier, source)
    assert len(drawn) == count
    got = sorted((example.guess, round(example.probability, 4)) for example in drawn)
    certainty = expected.probabilities.max(axis=1)
    labels = expected.labels.tolist()
    assert got == sorted((g, round(float(p), 4)) for g, p in zip(labels, certainty, strict=True))
    mistakes = [example.guess != example.label for example in drawn]
    assert mistakes == sorted(mistakes, reverse=True)
    with Image.open(next(file for file in files if file.endswith("turned.jpg"))) as image:
        turned = image.size[::-1]
    assert turned in [example.image.size for example in drawn]


def test_an_unreadable_image_is_left_out_with_a_line(run, photographs, capsys):
    source = open_source(run[1], train=False)
    bad = [source.describe(index) for index in (1, 4)]
    for file in bad:
        with open(file, "wb") as opened:
            opened.write(b"\xff\xd8\xff broken")
    assert report.main([f"--workdir={run[0]}"]) == 0
    assert (run[0] / "report.png").is_file()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(file in line for file, line in zip(bad, lines, strict=True))


def test_a_report_holds_one_full_image_at_a_time(run, photographs, monkeypatch):
    from flax_resnet.inference.classifier import load

    for number in range(60):
        Image.new("RGB", (600, 400)).save(photographs / "china" / f"more{number}.jpg")
    alive, most = weakref.WeakValueDictionary(), []

    def watched(*args, **kwargs):
        image = upright(*args, **kwargs)
        alive[len(most)] = image  # images cannot be members of a set
        most.append(sum(width * height for width, height in (one.size for one in alive.values())))
        return image

    upright = images.upright
    monkeypatch.setattr(images, "upright", watched)
    assert len(report.judge(load(run[0]), open_source(run[1], train=False))) == 24
    assert len(most) > 80
    assert max(most) < 3 * 600 * 400 + 24 * report.SIDE**2
