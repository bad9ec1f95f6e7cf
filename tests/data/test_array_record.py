"""Converting tfrecord to array_record: real files, read back by TFDS."""

import contextlib
import io

import numpy as np
import pytest
from conftest import refused

from flax_resnet.cli import commands
from flax_resnet.data.array_record import convert_to_array_record
from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.errors import DataError


@pytest.fixture
def tfrecord(tmp_path):
    """A data folder with the digits as tfrecord, five shards per split."""
    import tensorflow_datasets as tfds

    from flax_resnet.data.digits.digits_dataset_builder import Builder

    tfds.disable_progress_bar()
    builder = Builder(data_dir=str(tmp_path / "old"), file_format="tfrecord")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=5))
    return tmp_path / "old"


def test_a_tfrecord_dataset_is_converted_record_by_record(tfrecord, data_dir, capsys):
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    folder = tfrecord / "digits" / "1.0.0"
    call = ["prepare", "--name=digits", f"--data_dir={tfrecord}"]
    assert commands.main(call) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    old = sorted(folder.glob("*.tfrecord-*"))
    assert len(old) == 10
    for file in old:
        records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
        reader = ArrayRecordReader(
            str(file.with_name(file.name.replace("tfrecord", "array_record")))
        )
        assert reader.num_records() == len(records)
        assert reader.read(list(range(len(records)))) == records
        assert "group_size:1," in reader.writer_options_string()
        assert "uncompressed" in reader.writer_options_string()
    builder = tfds.builder_from_directory(folder)
    assert len(list(builder.as_dataset(split="train"))) == 1437
    assert len(builder.as_data_source("train")) == 1437
    assert len(tfds.data_source("digits:1.0.0", split="test", data_dir=str(tfrecord))) == 360
    for train in (True, False):
        ours = open_source(Data(data_dir=str(tfrecord)), train=train).read(range(360))
        expected = open_source(Data(data_dir=data_dir), train=train).read(range(360))
        assert ours.images == expected.images
        np.testing.assert_array_equal(ours.labels, expected.labels)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert commands.main(call) == 0  # already converted: no file is touched
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_an_interrupted_conversion_keeps_the_dataset_and_can_be_continued(tfrecord):
    import tensorflow_datasets as tfds

    folder = tfrecord / "digits" / "1.0.0"
    info = (folder / "dataset_info.json").read_bytes()
    victim = folder / "digits-train.tfrecord-00003-of-00005"
    whole = victim.read_bytes()
    damaged = bytearray(whole)
    damaged[5000] ^= 255
    shorter = whole[: _offset_of_last(whole)]
    seen = set()
    for content in (damaged, shorter, None):
        victim.unlink()
        if content is not None:
            victim.write_bytes(content)
        with refused(victim, kind=DataError) as caught:
            convert_to_array_record(folder, threads=1)
        seen.add(caught.value.problem)
        assert (folder / "dataset_info.json").read_bytes() == info
        with pytest.raises(NotImplementedError):
            tfds.builder_from_directory(folder).as_data_source("train")
        assert not list(folder.glob("incomplete*"))
        victim.write_bytes(whole)
    assert len(seen) == 3  # each damage has its own message
    finished = {p: p.stat().st_ino for p in folder.glob("*.array_record-*")}
    assert 0 < len(finished) < 10
    torn = next(iter(finished))
    torn.write_bytes(torn.read_bytes()[:1000])
    convert_to_array_record(folder)
    assert torn.stat().st_size > 1000
    kept = [p for p, inode in finished.items() if p.stat().st_ino == inode and p != torn]
    assert len(kept) == len(finished) - 1
    assert len(tfds.builder_from_directory(folder).as_data_source("train")) == 1437


def _offset_of_last(content):
    place = last = 0
    while place < len(content):
        last, length = place, int.from_bytes(content[place : place + 8], "little")
        place += 16 + length
    return last
