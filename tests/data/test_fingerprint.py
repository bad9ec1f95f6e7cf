"""Fingerprints of datasets: what changes them, and what does not."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from flax_resnet.data.data_section import Data
from flax_resnet.data.fingerprint import change, fingerprint_of, sizes_fingerprint
from flax_resnet.data.open import open_source
from flax_resnet.data.record_files import ShardedRecords
from flax_resnet.data.records import Unlabelled
from flax_resnet.data.sources.arrays import ArraySource


def folder(path, **more):
    return open_source(Data(source="folder", path=str(path), eval_fraction=0.2, **more), train=True)


def changed(before, after):
    found = change(before, fingerprint_of(after))
    return found and found.aspect


def test_a_moved_or_touched_folder_is_the_same_dataset(photographs, tmp_path):
    before = fingerprint_of(folder(photographs))
    moved = shutil.copytree(photographs, tmp_path / "other" / "place")
    for file in moved.rglob("*.jpg"):
        os.utime(file, (1, 1))
    assert changed(before, folder(moved)) is None
    parted = tmp_path / "parted"
    parted.mkdir()
    whole = fingerprint_of(
        open_source(Data(source="folder", path=str(photographs), eval_fraction=0), train=True)
    )
    shutil.move(moved, parted / "train")
    shutil.copytree(parted / "train", parted / "val")
    assert changed(whole, open_source(Data(source="folder", path=str(parted)), train=True)) is None


def test_a_name_in_the_middle_of_many_counts(photographs):
    """A sample of the names would miss it."""
    for number in range(300):
        shutil.copy(photographs / "china" / "0.jpg", photographs / "china" / f"more{number}.jpg")
    config = Data(source="folder", path=str(photographs), eval_fraction=0)
    source = open_source(config, train=True)
    before = fingerprint_of(source)
    (photographs / "china" / "more150.jpg").rename(photographs / "china" / "more150x.jpg")
    after = open_source(config, train=True)
    assert len(after) == len(source)
    assert changed(before, after) == "names"


@pytest.mark.parametrize("indices", [[3], [0], [2, 5]])
def test_another_size_counts_and_the_only_one_is_named(photographs, indices):
    source = folder(photographs)
    before = fingerprint_of(source)
    for grown, index in enumerate(indices, 1):
        with open(source.path(index), "ab") as file:
            file.write(b"x" * grown)
    found = change(before, fingerprint_of(folder(photographs)))
    assert found == ("sizes", indices[0] if len(indices) == 1 else None)


def test_random_changes_of_one_size_are_named():
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 10**6, 3_000_000)
    before = sizes_fingerprint(sizes)
    for index in draw.integers(0, len(sizes), 5):
        other = sizes.copy()
        other[index] = draw.integers(-1, 10**6)
        assert change(before, sizes_fingerprint(other)) == ("sizes", index)
    other[0] += 1
    assert change(before, sizes_fingerprint(other)) == ("sizes", None)


def test_a_label_in_a_table_and_a_vanished_file_count(photographs):
    files = sorted(photographs.rglob("*.jpg"))
    lines = [f"{file.relative_to(photographs)},{file.parent.name}\n" for file in files]
    table = photographs / "table.csv"

    def source():
        return open_source(Data(source="csv", path=str(table), eval_fraction=0), train=True)

    table.write_text("path,label\n" + "".join(lines))
    before = fingerprint_of(source())
    # The same files by absolute paths
    table.write_text("path,label\n" + "".join(f"{photographs}/{line}" for line in lines))
    assert changed(before, source()) is None
    table.write_text("path,label\n" + "".join(lines).replace("0.jpg,china", "0.jpg,flower"))
    assert changed(before, source()) == "labels"
    table.write_text("path,label\n" + "".join(lines))
    opened = source()
    files[4].unlink()
    assert change(before, fingerprint_of(opened)) == ("sizes", 4)


def test_a_tfds_dataset_is_the_same_in_another_folder_and_format(data_dir, tmp_path):
    def source(folder, split="train"):
        return open_source(Data(data_dir=str(folder), train_split=split), train=True)

    before = fingerprint_of(source(data_dir))
    copy = shutil.copytree(data_dir, tmp_path / "copy")
    assert changed(before, source(copy)) is None
    assert changed(before, source(copy, "train[:99%]")) == "records"
    (shard,) = copy.rglob("digits-train.array_record*")
    with open(shard, "ab") as file:
        file.write(b"x")
    assert changed(before, source(copy)) == "sizes of array_record files"


def test_another_format_of_the_same_records_is_the_same_dataset(tmp_path):
    def records(kind, count):
        file = tmp_path / f"digits-train.{kind}-00000-of-00001"
        file.write_text(kind)
        return ShardedRecords(kind, [(str(file), 0, count, count)])

    before = records("tfrecord", 9).fingerprint()
    assert change(before, records("array_record", 9).fingerprint()) is None
    assert change(before, records("array_record", 8).fingerprint()) == ("records", None)


def test_arrays_differ_by_labels_and_pixels():
    images, labels = np.zeros((4, 3, 3, 3), np.uint8), np.array([0, 1, 0, 1])
    before = fingerprint_of(ArraySource(images, labels))
    assert changed(before, ArraySource(images.copy(), labels.copy())) is None
    assert changed(before, ArraySource(images, labels[::-1])) == "labels"
    images[2, 1] = 7
    assert changed(before, ArraySource(images, labels)) == "pixels"


@dataclasses.dataclass
class Own:
    """A source of a user, which has only what `Source` asks for."""

    names: list[str]

    def __len__(self):
        return len(self.names)

    def describe(self, index):
        return self.names[index]


def test_a_source_of_the_user_is_known_by_all_its_names():
    names = [f"image {number}" for number in range(1000)]
    before = fingerprint_of(Own(names))
    assert changed(before, Own(list(names))) is None
    names[501] = "another"
    assert changed(before, Own(names)) == "names"


def test_unused_labels_leave_the_fingerprint(photographs):
    source = folder(photographs)
    assert fingerprint_of(Unlabelled(source)) == fingerprint_of(source)
