"""Packing datasets with real files and processes, and reading them with TFDS and Pillow."""

import fcntl
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from packed_dataset import arguments, decoded, examples, shards
from PIL import Image, ImageOps

from flax_resnet.cli import prepare
from flax_resnet.data.data_section import Data
from flax_resnet.data.decode import evaluation_pixels
from flax_resnet.data.open import open_source
from flax_resnet.data.packing.splits import file_splits

SIDE, QUALITY = 150, 90


@pytest.fixture
def pictures(photographs):
    """The photographs (sides of 90 to 200 pixels), and one file of every other kind."""
    photo = Image.open(photographs / "flower" / "0.jpg").resize((140, 100))
    large = photo.resize((560, 400))
    turned = Image.Exif()
    turned[0x0112] = 6
    folder = photographs / "china"
    large.save(folder / "large.jpg")
    photo.save(folder / "turned.jpg", exif=turned)
    large.save(folder / "large_turned.jpg", exif=turned)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    large.convert("L").save(folder / "large_grey.jpeg")
    folder = photographs / "flower"
    photo.convert("RGBA").save(folder / "rgba.png")
    large.convert("P").save(folder / "palette.png")
    photo.save(folder / "photograph.png")
    large.save(folder / "large.webp")
    photo.save(folder / "drawing.gif")
    Image.new("RGB", (40, 30), "red").save(folder / "icon.png")
    photo.save(folder / "progressive.JPG", progressive=True, quality=95)
    return photographs


def small(*more):
    return (f"--max_side={SIDE}", f"--quality={QUALITY}", *more)


def as_pillow_says(file):
    """Return the image of a file as packed, before it is encoded: upright, RGB, at most SIDE pixels."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def test_a_packed_folder_has_the_images_as_converted_by_pillow(pictures, tmp_path, capsys):
    import tensorflow_datasets as tfds

    call = arguments(tmp_path / "data", *small("--shard_size=7"), path=pictures)
    assert prepare.main(call) == 0
    said = capsys.readouterr().out
    assert "--config configs/resnet18.py:tfds=small_pictures --data_dir=" in said
    folder = tmp_path / "data" / "small_pictures" / "1.0.0"
    assert [p.name for p in folder.parent.iterdir()] == ["1.0.0"]
    assert {p.name for p in folder.iterdir()} - shards(folder).keys() == {
        "dataset_info.json", "features.json", "label.labels.txt", "packing.json",
    }  # fmt: skip
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["label"].names == ["china", "flower"]
    assert len(shards(folder)) > 3
    seen, kept = set(), set()
    for split, opened in file_splits(str(pictures), 0.2).items():
        packed = examples(tmp_path / "data", split)
        ours = open_source(
            Data(name="small_pictures", data_dir=str(tmp_path / "data")), train=split == "train"
        )
        assert ours.class_names == ("china", "flower")
        assert len(packed) == len(opened.source) == len(ours)
        read = ours.read(range(len(ours)))
        np.testing.assert_array_equal(read.labels, [label for _, label in packed])
        assert read.images == [image for image, _ in packed]
        for (encoded, label), index in zip(packed, opened.order, strict=True):
            file = pathlib.Path(opened.source.describe(int(index)))
            seen.add(file)
            assert file.parent.name == ("china", "flower")[label]
            if encoded == file.read_bytes():
                kept.add(file.name)
                continue
            assert Image.open(io.BytesIO(encoded)).format == "JPEG"
            assert not Image.open(io.BytesIO(encoded)).getexif()
            expected, buffer = as_pillow_says(file), io.BytesIO()
            expected.save(buffer, "JPEG", quality=QUALITY)
            if "turned" in file.name or "large" in file.name:
                # Packing rotates after resizing, or decodes at half size, so rounding differs.
                difference = decoded(encoded).astype(int) - decoded(buffer.getvalue())
                assert np.abs(difference).mean() < 1.0, file
            else:
                np.testing.assert_array_equal(decoded(encoded), decoded(buffer.getvalue()))
    assert seen == {f for f in pictures.rglob("*") if f.is_file()}
    fits = {f.name for f in seen if max(Image.open(f).size) <= SIDE and f.parent.name == "china"}
    assert {"0.jpg", "1.jpg", "2.jpg"} & kept <= fits | {"grey.jpg"}
    assert {"grey.jpg", "progressive.JPG", "icon.png"} <= kept
    assert kept.isdisjoint({"turned.jpg", "cmyk.jpg", "photograph.png", "rgba.png", "drawing.gif"})
    small_jpegs = {
        f for f in seen if f.name[0].isdigit() and max(Image.open(f).size) <= SIDE
    }  # fmt: skip
    assert small_jpegs
    assert {f.name for f in small_jpegs} <= kept


def test_a_csv_file_is_packed_with_its_splits(pictures, tmp_path):
    files = sorted(pictures.rglob("*.jpg"))[:6]
    rows = [
        f"{file.relative_to(tmp_path)},{file.parent.name}{i % 2}" for i, file in enumerate(files)
    ]
    sides = ["train", "train", "test"] * 2
    lines = [f"{row},{side}" for row, side in zip(rows, sides, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *lines]))
    assert prepare.main(arguments(tmp_path, *small(), path=tmp_path / "table.csv")) == 0
    assert [len(examples(tmp_path, split)) for split in ("train", "test")] == [4, 2]


def test_names_that_a_file_of_class_names_changes_are_packed_or_refused(
    photographs, tmp_path, prepare_refuses, capsys
):
    import tensorflow_datasets as tfds

    photographs = photographs.rename(os.fsdecode(os.fsencode(tmp_path / "set") + b"\xe9"))
    (photographs / "china").rename(photographs / " cafe\u0301")
    other = os.path.join(os.fsencode(photographs), b"flower", b"caf\xe9.jpg")
    (photographs / "flower" / "0.jpg").rename(os.fsdecode(other))
    (photographs / "flower" / ".ipynb_checkpoints").mkdir()
    shutil.copy(other, photographs / "flower" / ".ipynb_checkpoints" / "0.jpg")
    pathlib.Path(os.fsdecode(other)).with_name("b\udce9.jpg").write_bytes(b"not an image")
    assert prepare.main(arguments(tmp_path, path=photographs)) == 0
    assert "b\\xe9.jpg" in capsys.readouterr().err
    folder = tmp_path / "small_pictures" / "1.0.0"
    names = tfds.builder_from_directory(folder).info.features["label"].names
    assert names == ["caf\u00e9", "flower"]
    assert len(examples(tmp_path, "train+test")) == 12
    (photographs / "flower").rename(photographs / "two\nlines")
    prepare_refuses(arguments(tmp_path, path=photographs, name="other"), "two\\nlines", "control")
    assert not (tmp_path / "other").exists()


def test_tensorflow_decodes_every_packed_record(pictures, tmp_path):
    assert prepare.main(arguments(tmp_path, *small(), path=pictures)) == 0
    import tensorflow_datasets as tfds

    builder = tfds.builder("small_pictures", data_dir=str(tmp_path))
    for split in ("train", "test"):
        raw, full = examples(tmp_path, split), builder.as_data_source(split)
        for (encoded, _), example in zip(raw, full, strict=True):
            assert example["image"].shape == decoded(encoded).shape
            assert max(example["image"].shape) <= SIDE
            pixels = evaluation_pixels(encoded, Data(image_size=16), crop="resize").numpy()
            assert pixels.shape == (16, 16, 3)
            theirs = np.array(
                Image.fromarray(decoded(encoded)).resize((16, 16), Image.Resampling.BILINEAR)
            )
            assert np.abs(pixels.astype(int) - theirs).mean() < 1.5


def test_a_folder_is_packed_with_its_own_splits(photographs, tmp_path):
    for key in ("train", "val", "test"):
        shutil.copytree(photographs, tmp_path / "set" / key)
    (tmp_path / "set" / "train" / "china" / "0.jpg").unlink()
    assert prepare.main(arguments(tmp_path, path=tmp_path / "set")) == 0
    counts = {s: len(examples(tmp_path, s)) for s in ("train", "validation", "test")}
    assert counts == {"train": 11, "validation": 12, "test": 12}
    labels = [label for _, label in examples(tmp_path, "train[:4]")]
    assert set(labels) == {0, 1}  # even a small slice has every class


def test_a_tfds_dataset_keeps_its_order_and_its_small_pngs(data_dir, tmp_path):
    shutil.copytree(pathlib.Path(data_dir) / "digits", tmp_path / "digits")
    assert prepare.main(arguments(tmp_path, "--name=digits", name="digits_400")) == 0
    for split, train in (("train", True), ("test", False)):
        source = open_source(Data(data_dir=data_dir), train=train)
        expected = source.read(range(len(source)))
        packed = examples(tmp_path, split, "digits_400")
        assert [image for image, _ in packed] == expected.images
        np.testing.assert_array_equal([label for _, label in packed], expected.labels)


def test_a_damaged_source_is_one_line(data_dir, tmp_path, prepare_refuses):
    shutil.copytree(pathlib.Path(data_dir) / "digits", tmp_path / "digits")
    (file,) = (tmp_path / "digits" / "1.0.0").glob("*-test.array_record*")
    content = bytearray(file.read_bytes())
    content[5000:5200] = bytes(200)
    file.write_bytes(content)
    call = arguments(tmp_path, "--name=digits", name="digits_400")
    prepare_refuses(call, str(file))


def test_a_killed_and_continued_packing_gives_the_same_bytes(photographs, tmp_path, capsys):
    import tensorflow_datasets as tfds

    for file in list(photographs.rglob("*.jpg")):
        image = Image.open(file).resize((1400, 1050))
        for number in range(4):
            image.save(file.with_name(f"{file.stem}_{number}.jpg"))
    call = arguments(
        tmp_path / "killed", "--shard_size=4", "--threads=1", "--max_side=300", path=photographs
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "flax_resnet", "prepare", *call],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    root = tmp_path / "killed" / "small_pictures"
    work = root / "incomplete.1.0.0"
    deadline = time.monotonic() + 50
    while len(list(work.glob("ledger/train-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [p.name for p in root.iterdir()] == ["incomplete.1.0.0"]
    with pytest.raises(tfds.core.DatasetNotFoundError):
        tfds.builder("small_pictures", data_dir=str(tmp_path / "killed"))
    with pytest.raises(tfds.core.dataset_info.DatasetInfoFileError):
        tfds.builder_from_directory(work)
    before = {p.name: p.stat().st_ino for p in work.glob("small_pictures-*")}
    assert len(before) >= 3
    capsys.readouterr()
    assert prepare.main([*call, "--threads=2"]) == 0
    assert "going on: " in capsys.readouterr().err
    after = {p.name: p.stat().st_ino for p in (root / "1.0.0").glob("small_pictures-*")}
    finished = {name for name, inode in before.items() if after[name] == inode}
    assert len(finished) >= 3
    whole = arguments(
        tmp_path / "whole", "--shard_size=4", "--threads=2", "--max_side=300", path=photographs
    )
    assert prepare.main(whole) == 0
    other = tmp_path / "whole" / "small_pictures" / "1.0.0"
    assert len(shards(other)) > 12
    assert len(before) < len(shards(other))  # the kill came before the end
    assert shards(root / "1.0.0") == shards(other)
    for name in ("dataset_info.json", "features.json", "label.labels.txt", "packing.json"):
        assert (root / "1.0.0" / name).read_text() == (other / name).read_text()


def test_unreadable_images_and_changed_options_between_starts(
    pictures, tmp_path, prepare_refuses, capsys
):
    first, last = (
        pathlib.Path(split.source.describe(int(split.order[place])))
        for split, place in zip(file_splits(str(pictures), 0.2).values(), (0, -1), strict=True)
    )
    first.write_bytes(first.read_bytes()[:500])
    last.write_bytes(b"not an image")
    call = arguments(tmp_path, *small("--shard_size=5"), path=pictures)
    for _ in range(2):  # the second start continues after `first`, and still counts it
        prepare_refuses([*call, "--max_bad=1"], str(last), "--max_bad=1")
    work = tmp_path / "small_pictures" / "incomplete.1.0.0"
    assert work.is_dir()
    for change in ("max_side=151", "quality=91", "shard_size=6", "eval_fraction=0.3"):
        option, value = change.split("=")
        prepare_refuses([*call, f"--{change}"], str(work), option, value)
    shutil.copytree(pictures, tmp_path / "elsewhere")
    elsewhere = arguments(tmp_path, *small("--shard_size=5"), path=tmp_path / "elsewhere")
    prepare_refuses(elsewhere, str(work), "path=", "elsewhere")
    extra = pictures / "china" / "extra.jpg"
    extra.write_bytes((pictures / "china" / "0.jpg").read_bytes())
    prepare_refuses(call, str(work), "source")
    extra.unlink()
    held = os.open(work, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    prepare_refuses(call, str(work), "another process")
    os.close(held)
    capsys.readouterr()
    assert prepare.main([*call, "--max_bad=2"]) == 0
    assert "2 unreadable" in capsys.readouterr().out
    left_out = json.loads((work.parent / "1.0.0" / "packing.json").read_text())["left_out"]
    assert left_out == [str(first), str(last)]
    assert len(examples(tmp_path, "train+test")) == 23
    assert prepare.main(call) == 0
    out, err = capsys.readouterr()
    assert "is complete: " in out
    assert "train on it: " in out
    assert not err
    extra.write_bytes((pictures / "china" / "0.jpg").read_bytes())
    assert prepare.main(call) == 0
    assert "was packed when its source held other files" in capsys.readouterr().err
    extra.unlink()
    done = work.parent / "1.0.0"
    prepare_refuses([*call, "--max_side=151"], str(done), "max_side=150", "151")
    (done / "packing.json").unlink()
    prepare_refuses(call, str(done), "another name")


def test_a_changed_record_of_an_interrupted_packing_is_an_error(
    pictures, tmp_path, prepare_refuses
):
    """The command verifies all records, also in shards that an earlier start wrote."""
    last = file_splits(str(pictures), 0.2)["test"]
    pathlib.Path(last.source.describe(int(last.order[-1]))).write_bytes(b"")
    call = arguments(tmp_path, "--shard_size=3", path=pictures)
    prepare_refuses([*call, "--max_bad=0"], "--max_bad=0")
    work = tmp_path / "small_pictures" / "incomplete.1.0.0"
    ledgers = sorted(work.glob("ledger/*.json"))
    assert ledgers
    ledger = json.loads(ledgers[0].read_text())
    ledger["labels"][0] ^= 1
    ledgers[0].write_text(json.dumps(ledger))
    prepare_refuses(call, "split train", "label", "-00000-of-")
    assert not (work.parent / "1.0.0").exists()
    next(work.glob("*-train.array_record-00000-of-*")).unlink()
    assert prepare.main(call) == 0


def test_full_and_read_only_disks_are_one_line(photographs, tmp_path, prepare_refuses):
    call = arguments(tmp_path / "full", path=photographs)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Limit the size of files: writing then raises OSError, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        prepare_refuses(call, str(tmp_path / "full"), "File too large", code=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.array_record-*"))
    assert prepare.main(call) == 0
    prepare_refuses(arguments("/sys/nowhere", path=photographs), "/sys/nowhere", code=5)
