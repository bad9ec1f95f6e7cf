"""TFDS datasets, from array_record and from tfrecord."""

import io
import os
import pathlib

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data import record_files
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.tfds import TfdsSource, find_feature
from flax_resnet.errors import DataError, OutputError


def test_digits_are_the_1797_of_scikit_learn_in_a_fixed_split(data_dir):
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test = (open_source(Data(data_dir=data_dir), train=t) for t in (True, False))
    assert (len(train), len(test)) == (1437, 360)
    images, labels, _ = test.read(range(360))
    np.testing.assert_array_equal(labels, digits.target[::5])
    pixels = np.array(Image.open(io.BytesIO(images[7])))
    np.testing.assert_array_equal(pixels, np.rint(digits.images[35] * 255 / 16))
    held = TfdsSource(Data(data_dir=data_dir), "train[1200:]")
    assert held.read([0]).images == train.read([1200]).images


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("digit", "'digits'"),
        ("qqqqqqqqqqqq", "https://"),
        ("cifar10", "python -m flax_resnet prepare --name=cifar10 --data_dir="),
        ("imagenet2012", "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
    ],
)
def test_the_error_for_missing_data_says_how_to_get_them(data_dir, name, part):
    with refused("data.name", name, DataError) as caught:
        TfdsSource(Data(name=name, data_dir=data_dir), "train")
    assert part in caught.value.cure
    if "prepare" in part:
        assert data_dir in caught.value.problem  # the folder that was searched
        assert data_dir in caught.value.cure


@pytest.mark.parametrize("split", ["tain", "train["])
def test_the_error_for_an_unknown_split_lists_the_splits(data_dir, split):
    for key in ("train_split", "eval_split"):
        with refused(f"data.{key}", split, DataError) as caught:
            TfdsSource(Data(data_dir=data_dir, **{key: split}), split)
        assert "train, test" in caught.value.allowed
    with refused("split", split, DataError):
        TfdsSource(Data(data_dir=data_dir), split)


def test_an_empty_split_is_refused(data_dir):
    with refused("split", "train[:0]", DataError) as caught:
        TfdsSource(Data(data_dir=data_dir), "train[:0]")
    assert not caught.value.allowed  # the split exists, so no other choices are listed


def test_the_error_for_a_read_only_data_folder_names_it():
    with refused("/sys/nowhere", kind=OutputError) as caught:
        TfdsSource(Data(data_dir="/sys/nowhere"), "train")
    assert "'digits'" in caught.value.problem


def test_any_tfds_dataset_opens_with_mock_data():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=20):  # random pixels, with the real interface of TFDS
        source = TfdsSource(Data(name="cifar10"), "train")
        assert len(source) == 20
        assert len(source.class_names) == 10
        images, labels, _ = source.read([3, 3, 0])
        assert images[0] == images[1] != images[2]
        assert labels.dtype == np.int32
        assert Image.open(io.BytesIO(images[0])).size == (32, 32)


@pytest.fixture(scope="module")
def tfrecord_dir(tmp_path_factory):
    """The digits as TFDS writes them by default: tfrecord, here in several files."""
    import tensorflow_datasets as tfds

    from flax_resnet.data.digits.digits_dataset_builder import Builder

    folder = tmp_path_factory.mktemp("tfrecord")
    config = tfds.download.DownloadConfig(num_shards=5)
    Builder(data_dir=str(folder), file_format="tfrecord").download_and_prepare(
        download_config=config
    )
    return str(folder)


def as_stranger(folder):
    """Copy the prepared digits to a dataset name for which no builder class exists; return the name."""
    import re

    root = pathlib.Path(folder)
    target = root / "strangers"
    if not target.exists():
        source = root / "digits" / "1.0.0"
        (target / "1.0.0").mkdir(parents=True)
        for file in source.iterdir():
            content = file.read_bytes()
            if file.suffix == ".json":
                content = re.sub(rb'"name": "digits"', b'"name": "strangers"', content)
            (target / "1.0.0" / file.name.replace("digits-", "strangers-")).write_bytes(content)
    return "strangers"


def test_tfrecord_has_random_access_through_an_index(tfrecord_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    name = as_stranger(tfrecord_dir)
    for split in ("train", "test", "train[100:900]", "test+train[:5%]"):
        there = TfdsSource(Data(name=name, data_dir=tfrecord_dir), split)
        here = TfdsSource(Data(name="digits", data_dir=data_dir), split)
        assert len(there) == len(here)
        assert there.class_names == here.class_names
        size = len(there)
        for source in (there, here):
            np.testing.assert_array_equal(
                source.labels(), np.concatenate([source.read([i]).labels for i in range(size)])
            )
        # Compare without order: TFDS orders examples by file, and the number of files differs.
        if split in ("train", "test"):
            assert sorted(there.read(range(size)).images) == sorted(here.read(range(size)).images)
        picked = [size - 1, 0, size // 2, 0]
        assert there.read(picked).images == [there.read([i]).images[0] for i in picked]
    stored = sorted(f.name for f in (tmp_path / "index/flax_resnet/offsets").iterdir())
    assert len(stored) >= 6  # five files of train, and at least one of test
    monkeypatch.setattr(
        record_files, "offsets", None
    )  # from here on, the index must be read, not built
    TfdsSource(Data(name=name, data_dir=tfrecord_dir), "train").labels()


def test_tfrecord_examples_have_the_order_of_tfds(tfrecord_dir, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    name = as_stranger(tfrecord_dir)
    builder = tfds.builder(name, data_dir=tfrecord_dir)
    theirs = builder.as_dataset(
        split="train[7%:60%]", decoders={"image": tfds.decode.SkipDecoding()}
    )
    ours = TfdsSource(Data(name=name, data_dir=tfrecord_dir), "train[7%:60%]")
    images = [bytes(e["image"]) for e in theirs.as_numpy_iterator()]
    assert ours.read(range(len(ours))).images == images


def test_the_error_for_a_damaged_or_changed_tfrecord_names_the_file(tmp_path, monkeypatch):
    import tensorflow as tf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    file = tmp_path / "x.tfrecord"
    records = [os.urandom(n) for n in (0, 1, 700, 12)]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)
    sharded = record_files.ShardedRecords("tfrecord", [(str(file), 1, 3, 4)])
    assert sharded.read([2, 0, 1]) == [records[3], records[1], records[2]]
    with refused(file, kind=DataError) as caught:
        record_files.ShardedRecords("tfrecord", [(str(file), 0, 5, 5)]).read([0])
    assert "4 records" in caught.value.problem
    assert "5" in caught.value.problem
    file.write_bytes(file.read_bytes()[:-3])  # the size differs, so the stored index is not used
    with refused(file, kind=DataError) as caught:
        record_files.ShardedRecords("tfrecord", [(str(file), 0, 4, 4)]).read([0])
    assert "record 3 " in caught.value.problem
    for kind in record_files.FORMATS:
        with refused(tmp_path / "nowhere", kind=DataError):
            record_files.ShardedRecords(kind, [(str(tmp_path / "nowhere"), 0, 1, 1)]).read([0])


def test_the_error_for_an_array_record_of_another_length_names_the_file(data_dir):
    (file,) = pathlib.Path(data_dir).rglob("*-test.array_record*")
    with refused(file, kind=DataError) as caught:
        record_files.ShardedRecords("array_record", [(str(file), 0, 361, 361)]).read([0])
    assert "360 records" in caught.value.problem
    assert "361" in caught.value.problem


def test_the_error_for_a_damaged_array_record_names_the_file(data_dir, tmp_path):
    """Also through the whole pipeline, where TensorFlow would raise its own error."""
    import shutil

    from flax_resnet.data import pipeline
    from flax_resnet.data.sampling import EpochSampler

    shutil.copytree(data_dir, tmp_path / "data")
    (file,) = (tmp_path / "data").rglob("*-train.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = os.urandom(
        len(content) // 2 - len(content) // 3
    )
    file.write_bytes(content)
    data = Data(data_dir=str(tmp_path / "data"))
    source = open_source(data, train=True)
    with refused(file, kind=DataError):
        source.labels()
    with refused(file, kind=DataError):
        list(
            pipeline.training_batches(
                source, EpochSampler(len(source), 0), data, batch_size=64, start_step=0, total_steps=22,
                rows=slice(0, 64), bad={},
            )
        )  # fmt: skip


def test_features_are_found_or_must_be_configured():
    import tensorflow_datasets as tfds

    image, label = (
        tfds.features.Image(shape=(None, None, 3)),
        tfds.features.ClassLabel(num_classes=3),
    )
    features = tfds.features.FeaturesDict(
        {"picture": image, "coarse": label, "fine": label, "of": {"Male": np.bool_, "id": np.int64}}
    )
    assert find_feature(features, "image", "", "x") == "picture"
    assert find_feature(features, "label", "of/Male", "x") == "of/Male"
    for wanted in ("", "of/id"):  # not configured; not a label feature
        with refused("data.label_feature", wanted, DataError) as caught:
            find_feature(features, "label", wanted, "x")
        assert caught.value.allowed == ("coarse", "fine", "of/Male")
    two = tfds.features.FeaturesDict({"label": label, "image": image, "other": label})
    assert find_feature(two, "label", "", "x") == "label"
    none = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    for wanted in ("", "text"):
        with refused("data.name", "x", DataError) as caught:
            find_feature(none, "image", wanted, "x")
        assert "text" in caught.value.problem  # the only feature
