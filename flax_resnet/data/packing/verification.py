"""Verify a packed dataset by reading all of it through TFDS."""

import io
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from flax_resnet.data.packing.parallel_map import in_order
from flax_resnet.errors import DataError, one_line

CHUNK = 32  # records per task of a thread


def verify(
    folder: pathlib.Path,
    labels: dict[str, list[list[int]]],
    class_names: Sequence[str],
    threads: int,
) -> None:
    """Parse and decode every record of a dataset.

    Args:
      folder: folder of one version of a dataset, stored as array_record.
      labels: the expected labels of the records, by split and file.
      class_names: the expected class names.
      threads: records decoded in parallel.

    Raises:
      DataError: a record cannot be read or has another label than expected (the message names the first such record
        and its file); or the number of records or the class names differ.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    names = tuple(builder.info.features["label"].names)
    if names != tuple(class_names):
        odd = next(a for a in itertools.zip_longest(names, class_names) if a[0] != a[1])
        raise DataError(f"class {odd[1]!r} reads as {odd[0]!r}", key=folder)
    total = sum(len(file) for files in labels.values() for file in files)
    with tqdm(total=total, unit=" images", unit_scale=True, desc="verifying", disable=None) as bar:
        for split, files in labels.items():
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            expected = list(itertools.chain.from_iterable(files))
            if len(source) != len(expected):
                raise DataError(
                    f"split {split} holds {len(source)} records, not {len(expected)}", key=folder
                )
            starts = range(0, len(expected), CHUNK)
            tasks = (range(start, min(start + CHUNK, len(expected))) for start in starts)

            def check(
                indices: range, source: Any = source, expected: list[int] = expected
            ) -> list[str]:
                return [_fault(source, index, expected[index]) for index in indices]

            with in_order(check, tasks, threads) as checked:
                for index, fault in enumerate(itertools.chain.from_iterable(checked)):
                    if fault:
                        file = _file_of(builder.info.splits[split].filepaths, files, index)
                        raise DataError(
                            f"record {index} of split {split} {fault}",
                            key=file,
                            cure="delete the file and run the command again",
                        )
                    bar.update()


def _fault(source: Sequence[dict], index: int, label: int) -> str:
    try:
        example = source[index]
        with Image.open(io.BytesIO(example["image"])) as image:
            image.load()
    except Exception as error:  # from array_record, TFDS's parser or Pillow's decoders
        return f"cannot be read ({one_line(error)})"
    stored = int(example["label"])
    return "" if stored == label else f"has label {stored}, not {label}"


def _file_of(paths: Sequence[pathlib.Path], files: list[list[int]], index: int) -> pathlib.Path:
    ends = itertools.accumulate(len(file) for file in files)
    return next(path for path, end in zip(paths, ends, strict=True) if index < end)
