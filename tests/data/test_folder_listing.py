"""Folders of images: which files are images of a class, which are left out, and what the classes are called."""

import logging
import os

import numpy as np
import pytest
from conftest import refused
from PIL import Image, features

from flax_resnet.data import folder_listing
from flax_resnet.data.data_section import Data
from flax_resnet.data.decodable import decodable
from flax_resnet.data.decode import evaluation_pixels
from flax_resnet.data.images import prepare
from flax_resnet.data.open import open_source
from flax_resnet.data.packing.jpeg import pack_image
from flax_resnet.errors import DataError, printable

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture(autouse=True)
def lines(caplog):
    """What is logged, also at a level below warnings."""
    folder_listing.log_once.cache_clear()
    caplog.set_level(logging.INFO, "flax_resnet")
    return caplog


def tree(root, *files):
    """Write an image into each file; the names are text or bytes."""
    for file in files:
        path = os.path.join(os.fsencode(root), os.fsencode(file))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as opened:
            Image.new("RGB", (4, 4)).save(opened, "PNG")
    return root


def every_image(root, **settings):
    """Open both splits of a folder; return its classes, and {file: class}."""
    data = Data(source="folder", path=str(root), eval_fraction=0.5, **settings)
    found = {}
    for train in (True, False):
        source = open_source(data, train=train)
        for index, label in enumerate(source.labels()):
            file = os.path.relpath(source.describe(index), root)
            assert file not in found
            found[file] = source.class_names[label]
    return source.class_names, found


def test_hidden_files_and_those_of_systems_are_no_images(tmp_path, lines):
    images = {f"{kind}/{n}.png": kind for kind in "ab" for n in range(2)}
    foreign = ["a/.ipynb_checkpoints/0-checkpoint.png", "a/@eaDir/0.png/SYNOPHOTO.png", "a/.x.png"]
    foreign += ["b/__MACOSX/._0.png", "b/deep/.cache/0.png", "__MACOSX/a/0.png", ".git/x.png"]
    tree(tmp_path, *images, *foreign)
    assert every_image(tmp_path) == (("a", "b"), images)
    (line,) = {record.getMessage() for record in lines.records}
    for part in ("7 ", "@eaDir/ 1", "hidden files 1", "__MACOSX/ 2", str(tmp_path)):
        assert part in line


def test_a_hidden_folder_does_not_make_a_class_called_train_a_split(tmp_path):
    tree(tmp_path, "train/0.png", "train/1.png", "train/@eaDir/0.png", "bus/0.png", "bus/1.png")
    assert every_image(tmp_path)[0] == ("bus", "train")


def test_links_to_folders_are_followed_once_and_never_up(tmp_path):
    root = tree(tmp_path / "set", *(f"{kind}/{n}.png" for kind in "ab" for n in range(2)))
    tree(tmp_path / "store", "more/2.png", "class/0.png", "class/1.png")
    for link, target in (
        ("a/more", tmp_path / "store" / "more"),
        ("a/again", tmp_path / "store" / "more"),
        ("a/loop", root / "a"),
        ("a/up", root),
        ("a/top", tmp_path),
        ("a/self", "self"),
        ("a/gone.png", tmp_path / "gone.png"),
        ("c", tmp_path / "store" / "class"),
    ):
        (root / link).symlink_to(target)
    (tmp_path / "store" / "class" / "back").symlink_to(root)
    own = {f"{kind}/{n}.png": kind for kind in "abc" for n in range(2)}
    assert every_image(root) == (("a", "b", "c"), own | {"a/again/2.png": "a"})


KINDS = {
    **dict.fromkeys(("jfif", "jpe", "JPEG"), "JPEG"),
    **dict.fromkeys(("tif", "TIFF"), "TIFF"),
    **{"ppm": "PPM", "pgm": "PPM", "dib": "BMP", "tga": "TGA", "jp2": "JPEG2000", "apng": "PNG"},
}


DATA = Data(image_size=16)


def as_trained(source):
    """Return the pixels of the first example as the pipeline decodes them, and the encoded image."""
    records = source.read([0])
    (encoded,), (turn,) = records.images, records.orientations
    pixels = evaluation_pixels(decodable(encoded), DATA, crop="resize", orientation=turn)
    return pixels.numpy(), encoded


@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_of_image_is_read_alike_in_training_and_prediction(suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for kind in "ab":
        (tmp_path / kind).mkdir()
        for number in range(2):
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.{suffix}", KINDS[suffix])
    source = open_source(Data(source="folder", path=str(tmp_path)), train=True)
    trained, _ = as_trained(source)
    np.testing.assert_array_equal(trained, prepare([source.describe(0)], DATA)[0])
    if KINDS[suffix] not in ("JPEG", "JPEG2000"):
        np.testing.assert_array_equal(trained, pixels)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "JPEG2000"])
def test_every_kind_of_image_is_turned_alike_in_training_prediction_and_packing(
    kind, number, tmp_path
):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    suffix = {"TIFF": "tif", "AVIF": "avif", "JPEG2000": "jp2"}[kind]
    exif = Image.Exif()
    exif[0x0112] = number
    steps = np.mgrid[:16, :24, :3]
    pixels = (steps[0] * 8 + steps[1] * 3 + steps[2] * 20).astype(np.uint8)
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / f"x.{suffix}", kind, exif=exif)
    source = open_source(Data(source="folder", path=str(tmp_path)), train=True)
    trained, encoded = as_trained(source)
    predicted = prepare([source.describe(0)], DATA)[0]
    assert np.abs(trained.astype(int) - predicted).max() <= 1  # two functions for resizing
    packed = pack_image(encoded, max_side=24, quality=95, upright=True).encoded
    assert np.abs(prepare([packed], DATA)[0].astype(int) - predicted).mean() < 4


def test_files_of_other_kinds_are_counted(tmp_path, lines):
    tree(tmp_path, *(f"{kind}/{n}.png" for kind in "ab" for n in range(2)), "loose.png")
    for name in ("a/x.HEIC", "a/y.heic", "b/z.txt", "b/README", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert len(every_image(tmp_path)[1]) == 4
    (line,) = {record.getMessage() for record in lines.records}
    for part in ("5 ", ".heic 2", ".txt 1", "without a suffix 1", "outside of the classes 1"):
        assert part in line


def test_a_folder_of_other_files_holds_no_images(tmp_path):
    tree(tmp_path, "a/0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.heic").write_bytes(b"x")
    with refused(tmp_path / "b", kind=DataError) as caught:
        every_image(tmp_path)
    assert " 1 " in caught.value.problem
    assert ".png" in caught.value.allowed


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_may_be_absent_from_the_evaluation_split_only(empty, tmp_path, lines):
    tree(tmp_path, *(f"train/{kind}/0.png" for kind in "abc"), "val/a/1.png", "val/c/2.png")
    if empty:
        (tmp_path / "val" / "b").mkdir()
    data = Data(source="folder", path=str(tmp_path))
    held = open_source(data, train=False)
    assert held.class_names == open_source(data, train=True).class_names == ("a", "b", "c")
    assert held.labels().tolist() == [0, 2]
    (line,) = [record.getMessage() for record in lines.records]
    assert "1 of 3" in line
    assert "(b)" in line
    tree(tmp_path, "val/d/0.png")
    with refused(tmp_path / "val", kind=DataError) as caught:
        open_source(data, train=False)
    assert "d" in caught.value.problem.split()


def test_an_evaluation_split_without_images_is_refused(tmp_path):
    tree(tmp_path, *(f"train/{kind}/0.png" for kind in "ab"))
    (tmp_path / "val" / "a").mkdir(parents=True)
    with refused(tmp_path / "val", kind=DataError):
        open_source(Data(source="folder", path=str(tmp_path)), train=False)


@pytest.mark.parametrize("other", [NFD, f" {NFC}", f"{NFD} "])
def test_a_class_is_the_same_in_other_unicode_forms_and_with_blanks(other, tmp_path):
    tree(tmp_path, f"train/{NFC}/0.png", "train/b/0.png", f"val/{other}/1.png", "val/b/1.png")
    held = open_source(Data(source="folder", path=str(tmp_path)), train=False)
    assert held.class_names == ("b", NFC)
    assert [os.path.basename(os.path.dirname(held.describe(i))) for i in range(2)] == ["b", other]
    tree(tmp_path, f"val/{NFC}/1.png")
    with refused(tmp_path / "val", kind=DataError) as caught:
        open_source(Data(source="folder", path=str(tmp_path)), train=False)
    for name in (NFC, other):
        assert ascii(name) in caught.value.problem


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"  ", b"tab\t"])
def test_a_class_name_that_no_file_of_names_can_hold_is_refused(name, tmp_path):
    tree(tmp_path, b"a/0.png", name + b"/0.png")
    if name == b"tab\t":  # blanks at the end have no meaning
        data = Data(source="folder", path=str(tmp_path))
        assert open_source(data, train=True).class_names == ("a", "tab")
        return
    with refused(printable(tmp_path / os.fsdecode(name)), kind=DataError) as caught:
        every_image(tmp_path)
    str(caught.value).encode()


def test_a_file_name_that_is_not_utf_8_is_read_and_can_be_printed(tmp_path):
    tree(tmp_path, *(f"{kind}/{n}.png" for kind in "ab" for n in range(2)), b"a/caf\xe9.png")
    _, images = every_image(tmp_path)
    assert images["a/caf\\xe9.png"] == "a"
    source = open_source(Data(source="folder", path=str(tmp_path), eval_fraction=1.0), train=False)
    (index,) = (i for i in range(len(source)) if "caf" in source.describe(i))
    source.describe(index).encode()
    path = tmp_path.parent / os.fsdecode(b"caf\xe9")
    assert Data(source="folder", path=str(path)).dataset.endswith("caf\\xe9")  # in titles
    assert source.read([index]).images[0] == (tmp_path / "a" / "0.png").read_bytes()
