"""A TFDS dataset on disk, stored for random access: downloaded, or converted from tfrecord."""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from tqdm import tqdm

from flax_resnet.data.sources.tfds import find_builder, not_prepared
from flax_resnet.errors import DataError, one_line

# One record per chunk, so that reading one decodes one. Without compression, records of JPEGs (27 kB on average)
# are read 1.19 times as fast in random order as with the default (zstd), 58,000 and 49,000 a second on one core,
# and the files are as large; every reader finds the options in the file.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"


def prepare_dataset(name: str, data_dir: str = "", *, threads: int = 0) -> str:
    """Downloads a TFDS dataset as array_record, or converts what an earlier download left as tfrecord.

    Args:
      name: TFDS name, name/config or name:version.
      data_dir: TFDS data folder; empty for TFDS's own.
      threads: shards converted at once; 0 for one per core.

    Returns:
      The dataset's folder.

    Raises:
      DataError: an unknown dataset, archives that must be placed by hand, no network, no space.
    """
    builder = find_builder(name, data_dir)
    try:
        builder.download_and_prepare()
    except AssertionError as error:  # TFDS's way to say that archives are missing
        raise DataError(not_prepared(builder, name, data_dir)) from error
    except Exception as error:  # whatever the network or a dataset's own script raises
        raise DataError(f"dataset {name!r} cannot be prepared: {one_line(error)}") from error
    folder = pathlib.Path(builder.data_path)
    if {f.value for f in builder.info.available_file_formats()} == {"tfrecord"}:
        convert_to_array_record(folder, threads=threads)
    return str(folder)


class _Shard(NamedTuple):
    tfrecord: pathlib.Path
    array_record: pathlib.Path
    examples: int


def convert_to_array_record(folder: pathlib.Path, *, threads: int = 0) -> None:
    """Adds array_record files to a dataset of tfrecord files: the same records, order and shards.

    The last step names the new format in dataset_info.json, as TFDS's `alternative_file_formats`; until then
    every reader sees the dataset as it was. Shards that an interrupted conversion finished are kept. (TFDS's own
    `tfds convert_format` needs apache_beam, and writes dataset_info.json in place.)

    Args:
      folder: of one version of a dataset, with its dataset_info.json.
      threads: shards converted at once; 0 for one per core.

    Raises:
      DataError: a shard is absent, damaged, or not as long as dataset_info.json says; no space; read-only.
    """
    import tensorflow as tf
    from tensorflow_datasets.core import dataset_info
    from tensorflow_datasets.core.file_adapters import FileFormat

    tf.config.set_visible_devices([], "GPU")  # it only reads files
    info = dataset_info.read_proto_from_builder_dir(folder)
    tfrecord, array_record = (
        dataset_info.get_split_dict_from_proto(info, data_dir=folder, file_format=file_format)
        for file_format in (FileFormat.TFRECORD, FileFormat.ARRAY_RECORD)
    )
    shards = [
        _Shard(pathlib.Path(old), pathlib.Path(new), examples)
        for name in tfrecord
        for old, new, examples in zip(
            tfrecord[name].filepaths,
            array_record[name].filepaths,
            tfrecord[name].shard_lengths,
            strict=True,
        )
    ]
    total = sum(shard.examples for shard in shards)
    pool = concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count() or 1)
    try:
        with tqdm(
            total=total, unit=" records", unit_scale=True, desc=folder.parent.name, disable=None
        ) as bar:
            for done in concurrent.futures.as_completed(
                [pool.submit(_convert, shard) for shard in shards]
            ):
                bar.update(done.result())
        info.alternative_file_formats.append(FileFormat.ARRAY_RECORD.value)
        replace_text(folder / "dataset_info.json", dataset_info.get_dataset_info_json(info))
    except OSError as error:
        raise DataError(f"{folder} cannot be converted: {one_line(error)}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(shard: _Shard) -> int:
    """Converts one shard, unless that has been done; returns its number of records."""
    import tensorflow as tf

    if shard.array_record.exists() and count_records(shard.array_record) == shard.examples:
        return shard.examples
    if not shard.tfrecord.exists():
        raise DataError(f"{shard.tfrecord} is missing")
    temporary = shard.array_record.with_name(f"incomplete.{shard.array_record.name}")
    written, examples = hashlib.sha256(), 0

    def records() -> Iterable[bytes]:
        nonlocal examples
        for record in tf.data.TFRecordDataset(str(shard.tfrecord)).as_numpy_iterator():
            written.update(record)
            examples += 1
            yield record

    try:
        write_records(temporary, records())
        if examples != shard.examples:
            raise DataError(
                f"{shard.tfrecord} holds {examples} records, but dataset_info.json says {shard.examples}"
            )
        read = hashlib.sha256()
        for record in _read_records(temporary, examples):
            read.update(record)
        if read.digest() != written.digest():
            raise DataError(f"{temporary} does not read as it was written: is the disk sound?")
        temporary.replace(shard.array_record)
    except tf.errors.DataLossError as error:
        raise DataError(f"{shard.tfrecord} is damaged: {one_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return examples


def write_records(file: pathlib.Path, records: Iterable[bytes]) -> None:
    """Writes an array_record file, and through to the disk. Raises DataError: no space, read-only."""
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        writer = ArrayRecordWriter(str(file), ARRAY_RECORD_OPTIONS)
    except RuntimeError as error:
        raise DataError(f"{file} cannot be written: {one_line(error)}") from error
    iterator, going = iter(records), True
    try:
        while going:
            record = next(iterator, None)
            going = record is not None
            try:  # around the writer alone: what the records raise is not its fault
                writer.write(record) if going else writer.close()
            except RuntimeError as error:  # the C++ status, such as "No space left on device"
                raise DataError(f"{file} cannot be written: {one_line(error)}") from error
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def count_records(file: pathlib.Path) -> int:
    """Returns the number of records of an array_record file; -1 for a damaged one."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        try:
            return reader.num_records()
        finally:
            reader.close()  # here it says that the file is too short
    except RuntimeError:
        return -1


def _read_records(file: pathlib.Path, examples: int) -> Iterable[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file))
    try:
        for start in range(0, examples, 64):
            yield from reader.read(list(range(start, min(start + 64, examples))))
    finally:
        reader.close()


def replace_text(file: pathlib.Path, text: str) -> None:
    """Writes a small file whole or not at all, through to the disk. Raises OSError."""
    temporary = file.with_name(f"incomplete.{file.name}")
    with open(temporary, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)
