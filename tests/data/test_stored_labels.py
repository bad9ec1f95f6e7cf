"""Labels of TFDS datasets: they are read from the records once, and a stored copy is used only if it is right."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from conftest import refused

from flax_resnet.data import array_cache, record_files, stored_labels
from flax_resnet.data.array_cache import load_array, store_array
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.data.sources.tfds import TfdsSource
from flax_resnet.errors import DataError


@pytest.fixture
def copy(data_dir, tmp_path, monkeypatch):
    """A copy of the digits' data folder, and a cache of its own for the user."""
    shutil.copytree(data_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "digits" / "1.0.0" / stored_labels.FOLDER, ignore_errors=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def reads(monkeypatch):
    """The number of records that were read, by file."""
    counted = []
    original = record_files.ArrayRecordShard.read

    def read(self, indices):
        counted.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(record_files.ArrayRecordShard, "read", read)
    return counted


def split(folder, name="train"):
    return TfdsSource(Data(data_dir=str(folder)), name)


def stored(folder):
    return sorted((folder / "digits" / "1.0.0" / stored_labels.FOLDER).glob("*"))


def test_labels_are_read_once_and_serve_every_slice(copy, reads):
    source = split(copy)
    expected = source.read(range(len(source))).labels
    reads.clear()
    np.testing.assert_array_equal(source.labels(), expected)
    assert len(reads) == 1437
    source.labels()
    for name in ("train", "train[100:900]", "train[90%:]+train[:5%]"):
        other = split(copy, name)
        labels = other.labels()
        assert labels.dtype == np.int32
        assert len(reads) == 1437
        np.testing.assert_array_equal(labels[::97], other.read(range(0, len(other), 97)).labels)
        del reads[1437:]
    assert len(stored(copy)) == 1


@pytest.mark.parametrize("damage", ["flip", "shorten", "empty", "other", "fewer"])
def test_a_broken_copy_is_not_used(damage, copy, reads):
    expected = split(copy).labels()
    (file,) = stored(copy)
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-40] ^= 1
    elif damage == "shorten":
        del content[-8:]
    elif damage == "empty":
        content.clear()
    file.write_bytes(content)
    if damage == "other":  # the labels of another file under this name
        split(copy, "test").labels()
        (test,) = set(stored(copy)) - {file}
        shutil.copy(test, file)
    elif damage == "fewer":
        (records,) = (copy / "digits" / "1.0.0").glob("*-train.array_record*")
        identity = f"labels label {array_cache.file_identity(records, records.name)}"
        assert load_array(file.parent, identity) is None or len(expected) == 1437
        store_array(file.parent, identity, expected[:-1])
    reads.clear()
    np.testing.assert_array_equal(split(copy).labels(), expected)
    assert len(reads) == 1437
    np.testing.assert_array_equal(split(copy).labels(), expected)
    assert len(reads) == 1437


def test_a_changed_file_is_read_again(copy, reads):
    split(copy).labels()
    (file,) = (copy / "digits" / "1.0.0").glob("*-train.array_record*")
    os.utime(file, ns=(0, os.stat(file).st_mtime_ns + 1))
    reads.clear()
    split(copy).labels()
    assert len(reads) == 1437


def test_labels_are_kept_for_the_user_if_the_dataset_is_read_only(copy, reads, monkeypatch):
    original = array_cache.store_array

    def read_only(folder, identity, array):
        if folder.name == stored_labels.FOLDER:
            raise PermissionError(folder)
        original(folder, identity, array)

    monkeypatch.setattr(stored_labels, "store_array", read_only)
    expected = split(copy).labels()
    assert not stored(copy)
    reads.clear()
    np.testing.assert_array_equal(split(copy).labels(), expected)
    assert not reads
    shutil.rmtree(copy.parent / "cache")
    (copy.parent / "cache").touch()  # no folder can be made
    np.testing.assert_array_equal(split(copy).labels(), expected)


def test_a_balanced_run_reads_no_records_at_its_second_start(copy, reads):
    from flax_resnet.config import freeze
    from flax_resnet.training.experiment import class_counts, open_splits

    config = freeze({"data": {"data_dir": str(copy), "class_balanced": True}})
    counts = [class_counts(open_splits(config))]
    reads.clear()
    counts.append(class_counts(open_splits(config)))
    np.testing.assert_array_equal(*counts)
    assert len(reads) == 128  # the labels of 64 examples of each split are checked


def test_the_labels_of_a_damaged_file_are_refused(copy):
    (file,) = (copy / "digits" / "1.0.0").glob("*-train.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    file.write_bytes(content)
    with refused(pathlib.Path(file), kind=DataError):
        open_source(Data(data_dir=str(copy)), train=True).labels()
    assert not stored(copy)
