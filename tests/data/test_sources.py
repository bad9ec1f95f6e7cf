import csv
import io

import numpy as np
import pytest
from conftest import refused
from PIL import Image, ImageOps

from flax_resnet.data.data_section import Data
from flax_resnet.data.decodable import decodable
from flax_resnet.data.decode import evaluation_pixels, training_pixels
from flax_resnet.data.images import orientation, prepare
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.files import folder_source
from flax_resnet.errors import DataError

# --- files ---


def test_a_folder_with_train_and_val(tmp_path, photographs):
    (tmp_path / "set").mkdir()
    photographs.rename(tmp_path / "set" / "train")
    data = Data(source="folder", path=str(tmp_path / "set"))
    with refused("data.eval_split", "test", DataError) as caught:
        open_source(data, train=False)
    assert "train" in caught.value.problem  # the folders that were found
    for name in ("china", "flower"):
        (tmp_path / "set" / "val" / name).mkdir(parents=True)
        file = tmp_path / "set" / "train" / name / "0.jpg"
        (tmp_path / "set" / "val" / name / "1.jpg").write_bytes(file.read_bytes())
    assert len(open_source(data, train=True)) == 12
    held = open_source(data, train=False)
    assert (len(held), held.class_names) == (2, ("china", "flower"))
    (tmp_path / "set" / "val" / "flower").rename(tmp_path / "set" / "val" / "flwr")
    with refused(tmp_path / "set" / "val", kind=DataError) as caught:
        open_source(data, train=False)
    assert "flwr" in caught.value.problem


def test_the_split_of_a_folder_is_stable_when_a_file_is_added(photographs):
    data = Data(source="folder", path=str(photographs), eval_fraction=0.4)
    sides = [
        {s.describe(i) for i in range(len(s))}
        for s in (open_source(data, train=t) for t in (True, False))
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12
    (photographs / "china" / "another.jpg").write_bytes(
        (photographs / "china" / "0.jpg").read_bytes()
    )
    after = open_source(data, train=True)
    assert sides[0] <= {after.describe(i) for i in range(len(after))}


def test_errors_in_image_folders(tmp_path):
    data = Data(source="folder", path=str(tmp_path))
    with refused(tmp_path, kind=DataError) as none:
        open_source(data, train=True)
    (tmp_path / "a").mkdir()
    with refused(tmp_path, kind=DataError) as one:
        open_source(data, train=True)
    assert "'a'" in one.value.problem
    assert "'a'" not in none.value.problem
    (tmp_path / "b").mkdir()
    with refused(tmp_path / "a", kind=DataError):  # holds no images
        open_source(data, train=True)
    with refused("data.path", str(tmp_path / "c"), DataError):
        folder_source(Data(source="folder", path=str(tmp_path / "c")), "train", True)


def test_a_folder_without_splits_has_only_train_and_test(photographs):
    data = Data(source="folder", path=str(photographs))
    for split in ("valid", "train[:5]"):
        with refused("split", split, DataError) as caught:
            open_source(data, train=True, split=split)
        assert "'train' or 'test'" in caught.value.allowed
    with refused("data.path", str(photographs), DataError):  # too few images to evaluate on
        open_source(Data(source="folder", path=str(photographs), eval_fraction=0.0), train=False)


def test_a_folder_of_evaluation_splits_has_nothing_to_train_on(tmp_path, photographs):
    (tmp_path / "set").mkdir()
    photographs.rename(tmp_path / "set" / "val")
    with refused("data.train_split", "train", DataError) as caught:
        open_source(Data(source="folder", path=str(tmp_path / "set")), train=True)
    assert "val" in caught.value.problem


@pytest.fixture
def table(tmp_path, photographs):
    """The photographs as rows of path, label and split."""
    rows = [
        {"path": str(file.relative_to(tmp_path)), "label": file.parent.name, "split": split}
        for number, file in enumerate(sorted(photographs.rglob("*.jpg")))
        for split in [("train", "test")[number % 3 == 0]]
    ]

    def write(rows, columns, name="table.csv"):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return Data(source="csv", path=str(tmp_path / name), eval_fraction=0.4)

    return rows, write


def test_a_csv_with_and_without_splits(table):
    rows, write = table
    data = write(rows, ["label", "path", "split"])
    train, test = (open_source(data, train=t) for t in (True, False))
    assert (len(train), len(test)) == (8, 4)
    assert train.class_names == ("china", "flower")
    assert all(name.endswith(("0.jpg", "3.jpg")) for name in map(test.describe, range(4)))
    np.testing.assert_array_equal(test.labels(), [0, 0, 1, 1])
    assert train.read([0]).images[0][:2] == b"\xff\xd8"

    data = write(rows, ["path", "label"])
    sides = [
        {s.describe(i) for i in range(len(s))}
        for s in (open_source(data, train=t) for t in (True, False))
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12

    with_val = [{**row, "split": row["split"].replace("test", " val ")} for row in rows]
    assert len(open_source(write(with_val, ["path", "label", "split"]), train=False)) == 4

    numbered = [{**row, "label": str(10 - 8 * (row["label"] == "china"))} for row in rows]
    assert open_source(write(numbered, ["path", "label"]), train=True).class_names == ("2", "10")
    numbered[0]["label"] = "02"  # equal as a number; the order is still defined
    names = open_source(write(numbered, ["path", "label"]), train=True).class_names
    assert names == ("02", "2", "10")


@pytest.mark.parametrize(
    ("columns", "change", "parts"),
    [
        (["path", "label"], {"path": ""}, ["line 2", "path"]),
        (["path", "label"], {"label": ""}, ["line 2", "label"]),
        (["path", "label"], {"label": "one"}, ["classes", "1"]),
        (["path", "label"], {"path": "gone.jpg"}, ["line 2", "gone.jpg"]),
    ],
)
def test_csv_errors_name_the_file_and_the_line(table, columns, change, parts):
    rows, write = table
    data = write([{**row, **change} for row in rows], columns)
    with refused(data.path, kind=DataError) as caught:
        open_source(data, train=True)
    assert all(part in caught.value.problem for part in parts)


def test_a_csv_without_rows_of_a_split_names_the_split_and_those_it_has(table):
    rows, write = table
    data = write([{**row, "split": "valid"} for row in rows], ["path", "label", "split"])
    with refused("data.train_split", "train", DataError) as caught:
        open_source(data, train=True)
    assert all(part in caught.value.problem for part in (data.path, "valid"))


def test_the_error_for_a_missing_csv_column_names_it(table):
    rows, write = table
    for there, missing in (("path", "label"), ("label", "path")):
        data = write(rows, [there])
        with refused("data.path", data.path, DataError) as caught:
            open_source(data, train=True)
        assert missing in caught.value.problem
        assert there not in caught.value.problem


def test_a_csv_that_does_not_exist_or_is_not_text_is_refused(tmp_path):
    file = tmp_path / "x.csv"
    data = Data(source="csv", path=str(file))
    with refused("data.path", str(file), DataError):
        open_source(data, train=True)
    file.write_bytes(b"\xff\xfe\x00")
    with refused(file, kind=DataError):
        open_source(data, train=True)


def test_another_split_seed_holds_out_other_files(photographs):
    kept = [
        {s.describe(i) for i in range(len(s))}
        for seed in (0, 1, 1)
        for s in [
            open_source(
                Data(source="folder", path=str(photographs), eval_fraction=0.5, split_seed=seed),
                train=True,
            )
        ]
    ]
    assert kept[0] != kept[1] == kept[2]


# --- formats and orientation ---


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def variety():
    """Return {name: encoded image} with every mode of every format."""
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg")[100:164, 200:264])
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "jpeg": encoded(image, "JPEG"),
        "jpeg grey": encoded(image.convert("L"), "JPEG"),
        "jpeg CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg progressive": encoded(image, "JPEG", progressive=True, subsampling=0),
        "png": encoded(image, "PNG"),
        "png grey": encoded(image.convert("L"), "PNG"),
        "png grey alpha": encoded(image.convert("LA"), "PNG"),
        "png alpha": encoded(clear, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png 1 bit": encoded(image.convert("1"), "PNG"),
        "bmp": encoded(image, "BMP"),
        "bmp alpha": encoded(clear, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp 1 bit": encoded(image.convert("1"), "BMP"),
        "gif": encoded(palette, "GIF"),
        "gif transparent": encoded(palette, "GIF", transparency=5),
        "gif frames": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "webp": encoded(image, "WEBP"),
        "webp lossless": encoded(image, "WEBP", lossless=True),
        "webp alpha": encoded(clear, "WEBP", lossless=True),
        "webp frames": encoded(image, "WEBP", lossless=True, **frames),
    }


@pytest.mark.parametrize("name", variety())
def test_every_format_and_mode_is_decoded_as_by_pillow(name, tmp_path):
    suffix = name.split()[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"x.{suffix}").write_bytes(variety()[name])
    source = folder_source(
        Data(source="folder", path=str(tmp_path), eval_fraction=1.0), "test", train=False
    )
    expected = np.asarray(Image.open(io.BytesIO(variety()[name])).convert("RGB"))
    (image,) = source.read([1]).images
    got = evaluation_pixels(decodable(image), Data(image_size=64), crop="resize").numpy()
    np.testing.assert_array_equal(got, expected)


def test_sixteen_bit_pixels_are_scaled_to_eight_bits(tmp_path):
    grey = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16)
    grey.save(tmp_path / "x.png")
    data = Data(image_size=64)
    got = evaluation_pixels((tmp_path / "x.png").read_bytes(), data).numpy()
    np.testing.assert_array_equal(got[..., 0], np.asarray(grey) >> 8)
    np.testing.assert_array_equal(prepare([tmp_path / "x.png"], data)[0], got)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_orientation_is_applied_as_pillow_does(kind, number, tmp_path):
    image = Image.open(io.BytesIO(variety()["png"])).crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = number
    stored = encoded(image, kind, exif=exif)
    assert orientation(stored) == number
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    assert (upright.size == (40, 60)) == (number > 4)
    for crop in ("center", "resize"):
        data = Data(image_size=24, eval_crop=crop)
        got = evaluation_pixels(decodable(stored), data, orientation=np.int32(number)).numpy()
        (tmp_path / "x").write_bytes(encoded(upright, "PNG"))
        expected = prepare([tmp_path / "x"], data)[0]
        assert np.abs(got.astype(int) - expected).max() <= 1
        (tmp_path / "y").write_bytes(stored)
        np.testing.assert_array_equal(prepare([tmp_path / "y"], data)[0], expected)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_random_crop_of_a_rotated_image_equals_that_of_the_upright_one(number):
    import tensorflow as tf

    image = Image.open(io.BytesIO(variety()["png"])).crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = number
    stored = encoded(image, "PNG", exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))), "PNG")
    data = Data(image_size=16, train_crop="random_resized")
    for draw in range(4):
        seed = tf.constant([0, draw], tf.int64)
        got = training_pixels(stored, data, seed=seed, orientation=np.int32(number)).numpy()
        expected = training_pixels(upright, data, seed=seed).numpy()
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_orientation_is_used_for_folders_unless_disabled(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 4)).save(tmp_path / name / "x.jpg", exif=exif)
    for wanted in (True, False):
        data = Data(source="folder", path=str(tmp_path), eval_fraction=1.0, exif=wanted)
        source = open_source(data, train=False)
        assert source.orientations is wanted
        turns = source.read([1, 0]).orientations
        assert (turns.tolist() if wanted else turns) == ([6, 6] if wanted else None)


def test_broken_exif_data_are_ignored():
    assert orientation(b"\xff\xd8\xff\xe1\x00\x10Exif\0\0 nonsense") == 0
