"""The report of a run: one page without other files, a table, a picture; escaped, small, written as a whole."""

import csv
import dataclasses
import html.parser
import json
import re
import weakref

import numpy as np
import pytest
from conftest import refused, saved_run
from PIL import Image

from flax_resnet.cli import report
from flax_resnet.cli.page.cases import collect
from flax_resnet.cli.page.run_report import gather
from flax_resnet.cli.page.thumbnails import heat_thumbnail, thumbnail
from flax_resnet.cli.plots import run_picture
from flax_resnet.data import images
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.errors import ConfigError
from flax_resnet.training.runs.time_account import StartTimes

SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
NAMES = ("<b>&\"cat'", "ü <script>alert(1)")  # names of folders, in their order
LARGEST = 5 << 20


class Reader(html.parser.HTMLParser):
    """Collects the tags, the texts and the addresses of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.addresses = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "data", "srcset")]

    def handle_data(self, data):
        if self.tags[-1:] not in (["script"], ["style"]):
            self.texts.append(data)


def read(file):
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader


def records():
    """Records as a run writes them."""
    for step in range(1, 5):
        values = {"loss": 2.0 / step, "top1": 0.2 * step}
        speed = {"images_per_second": 100.0, "learning_rate": 0.1 / step}
        yield {"step": step, "epoch": step / 2, "split": "train", **values, **speed}
        yield {"step": step, "epoch": step / 2, "split": "held out", **values, "ema_top1": 0.5}


@pytest.fixture
def run(tmp_path, photographs):
    """An untrained run on photographs, one of them turned by its EXIF orientation, one of 16 bits, one broken."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = photographs / "china" / "0.jpg"
    with Image.open(file) as image:
        image.save(photographs / "china" / "turned.jpg", exif=exif)
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(photographs / "flower" / "deep.png")
    for old, new in zip(("china", "flower"), NAMES, strict=True):
        (photographs / old).rename(photographs / new)
    (photographs / NAMES[0] / "3.jpg").write_bytes(b"\xff\xd8\xff broken")
    data = {"source": "folder", "path": str(photographs), "eval_fraction": 0.99, "image_size": 16}
    folder = saved_run(tmp_path / "run", {"data": data, "model": SHAPE}, NAMES, step=3)
    lines = "".join(json.dumps(record) + "\n" for record in records())
    (folder / "metrics.jsonl").write_text(lines)
    starts = (
        StartTimes("2026-01-01T00:00:00", 0, 4, {"stepping": 60.0, "evaluating": 20.0}),
        StartTimes("2026-01-01T01:00:00", 3, 4, {"stepping": 15.0, "compiling": 5.0}),
    )
    times = "".join(json.dumps(start._asdict()) + "\n" for start in starts)
    (folder / "times.jsonl").write_text(times + '{"torn')
    return folder, Data(**data)


def test_heat_maps_lie_on_the_crop_that_they_explain(run):
    found = gather(run[0])
    data = dataclasses.replace(
        found.classifier.config.data, eval_crop="center", eval_crop_fraction=0.6
    )
    config = dataclasses.replace(found.classifier.config, data=data)
    classifier = dataclasses.replace(found.classifier, config=config)
    cases = collect(found._replace(classifier=classifier))
    case = next(case for case in (*cases.mistakes, *cases.uncertain) if case.heat)
    number = classifier.class_names.index(case.prediction)
    (heat,) = classifier.explain(case.name, number)
    (pixels,) = images.prepare(case.name, data)
    assert case.image == thumbnail(pixels)
    assert case.heat == heat_thumbnail(pixels, heat)


def test_a_report_is_one_page_a_table_and_a_picture(run, cache_dir, capsys):
    call = [f"--workdir={run[0]}", f"--compilation_cache={cache_dir}"]
    assert report.main(call) == 0
    files = [run[0] / name for name in ("report.html", "classes.csv", "report.png")]
    assert capsys.readouterr().out.splitlines() == list(map(str, files))
    page = read(files[0])
    # Neither another file nor the network; names of users are text.
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.tags.count("script") == 1
    text = "".join(page.texts)
    for name in (*NAMES, "3.jpg", "held out", "learning rate"):
        assert name in text
    # A quarter of the steps of the first start was done again.
    for stage, share, time in (
        ("stepping", "60.0 %", "1:00"), ("evaluating", "20.0 %", "0:20"), ("lost to restarts", "15.0 %", "0:15"),
    ):  # fmt: skip
        assert f"{stage}{share}{time}" in text
    source = files[0].read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)", source)
    assert source.count("<script") == 1
    assert len(source.encode()) < LARGEST
    assert "nan" not in text.lower()
    with files[1].open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["class"] for row in rows] == list(NAMES)
    count = len(open_source(run[1], train=False)) - 1
    assert sum(int(row["images"]) for row in rows) == count
    assert Image.open(files[2]).size > (1000, 600)

    # The second report replaces the first one as a whole, and leaves nothing else.
    files[0].write_text("old")
    assert report.main(call) == 0
    assert files[0].read_text(encoding="utf-8") == source
    assert not list(run[0].glob(".*.part"))
    capsys.readouterr()
    # Other images, another folder.
    other = run[0].parent / "elsewhere" / "here"
    moved = f"--dataset={run[1].path}"
    assert report.main([*call, moved, f"--output={other}"]) == 0
    assert {file.name for file in other.iterdir()} == {file.name for file in files}


def test_bad_input_is_one_line(run, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, code in (
        ([], 2),
        ([f"--workdir={tmp_path / 'none'}"], 5),
        ([f"--workdir={run[0]}", f"--output={file}"], 2),
        ([f"--workdir={run[0]}", "--dataset=/no/such/folder"], 4),
    ):
        assert report.main(arguments) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("report", kind=ConfigError):
        report.check_packages()


def test_captions_keep_to_their_column():
    """A column is an eighth of 12 inches."""
    from matplotlib.textpath import TextPath

    inches = 12 / run_picture.SHOWN[1]
    for guess, label in (("functional", "defective"), ("n" * 40, "o" * 99), ("猫" * 9, "犬")):
        lines = run_picture.caption(guess, label, 1.0).splitlines()
        assert len(lines) == 2
        for line in lines:
            ascii_line = "".join(c if c.isascii() else "nn" for c in line)
            width = TextPath((0, 0), ascii_line, size=8.5, usetex=False).get_extents().width
            assert width / 72 < inches, line
    assert run_picture.caption("cat", "cat", 0.62) == "cat (62%)"


def test_a_report_holds_one_full_image_at_a_time(run, monkeypatch):
    from flax_resnet.inference import judged_split

    folder = run[0].parent / "photographs" / NAMES[0]
    for number in range(40):
        Image.new("RGB", (600, 400)).save(folder / f"more{number}.jpg")
    alive, most = weakref.WeakValueDictionary(), []

    def watched(*args, **kwargs):
        image = upright(*args, **kwargs)
        alive[len(most)] = image  # images cannot be members of a set
        most.append(sum(width * height for width, height in (one.size for one in alive.values())))
        return image

    from flax_resnet.inference.classifier import load

    upright = images.upright
    monkeypatch.setattr(judged_split, "upright", watched)
    source = open_source(run[1], train=False)
    rows = [index for index in range(len(source)) if "more" in source.describe(index)]
    pixels = judged_split.input_images(load(run[0]), source, rows)
    assert pixels.shape == (len(rows), 16, 16, 3)
    assert len(most) == len(rows) > 30
    assert max(most) <= 2 * 600 * 400


def test_an_image_is_shown_as_the_network_sees_it(run):
    from flax_resnet.inference.classifier import load
    from flax_resnet.inference.judged_split import input_images

    classifier, source = load(run[0]), open_source(run[1], train=False)
    turned = [i for i in range(len(source)) if source.describe(i).endswith("turned.jpg")]
    pixels = input_images(classifier, source, turned)
    expected = images.prepare([source.describe(turned[0])], classifier.config.evaluating().data)
    np.testing.assert_array_equal(pixels, expected)
