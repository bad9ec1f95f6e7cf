"""The files of a packed dataset: assign images to files, and write the files that are not finished."""

import itertools
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from flax_resnet.data.array_record import count_records, replace_text, write_records
from flax_resnet.data.packing.jpeg import pack_image
from flax_resnet.data.packing.parallel_map import in_order
from flax_resnet.data.packing.splits import Split
from flax_resnet.errors import DataError, one_line

log = logging.getLogger("flax_resnet")

CHUNK = 8  # images per task of a thread


class Shard(NamedTuple):
    """A file of a packed dataset.

    Attributes:
      file: path of the finished file.
      ledger: path of a JSON file about the finished file: the labels of its records, the names of images left out,
        the bytes before and after packing, and the number of images for each `Packed.how`.
      split: name of its split.
      start: first position in the order of the split.
      stop: one past the last position.
    """

    file: pathlib.Path
    ledger: pathlib.Path
    split: str
    start: int
    stop: int


def plan(folder: pathlib.Path, name: str, splits: dict[str, Split], size: int) -> list[Shard]:
    """Divide splits evenly into files with TFDS's file names.

    Args:
      folder: folder of the files; ledgers are in its sub-folder `ledger`.
      name: name of the packed dataset.
      splits: splits to pack.
      size: maximum number of images per file.
    """
    shards = []
    for key, split in splits.items():
        images = len(split.source)
        count = -(-images // size)
        for number in range(count):
            file = f"{name}-{key}.array_record-{number:05d}-of-{count:05d}"
            ledger = folder / "ledger" / f"{key}-{number:05d}.json"
            start, stop = images * number // count, images * (number + 1) // count
            shards.append(Shard(folder / file, ledger, key, start, stop))
    return shards


def finished(shard: Shard) -> dict[str, Any] | None:
    """Return the ledger of a finished shard; None if the shard is not finished."""
    try:
        ledger = json.loads(shard.ledger.read_text())
    except (OSError, ValueError):
        return None
    complete = shard.file.exists() and count_records(shard.file) == len(ledger["labels"])
    return ledger if complete else None


def write(
    shards: list[Shard],
    splits: dict[str, Split],
    *,
    max_side: int,
    quality: int,
    threads: int,
    max_bad: int,
) -> None:
    """Write the unfinished shards one after the other, each atomically.

    Args:
      shards: shards from `plan`.
      splits: splits to pack.
      max_side: maximum of the longer side of a stored image, in pixels.
      quality: quality of newly encoded JPEGs, 1 to 100.
      threads: images decoded and encoded in parallel.
      max_bad: maximum number of unreadable images, including those of finished shards.

    Raises:
      DataError: too many images are unreadable, or all images of one file.
      OutputError: the disk is full or read-only.
    """
    ledgers = {shard: finished(shard) for shard in shards}
    waiting = [shard for shard, ledger in ledgers.items() if not ledger]
    total, left = (sum(s.stop - s.start for s in some) for some in (shards, waiting))
    if left < total:
        log.info("going on: %d of %d images are packed", total - left, total)
    tally = _Tally(max_bad, sum(len(ledger["bad"]) for ledger in ledgers.values() if ledger))
    tasks = (
        (shard, range(start, min(start + CHUNK, shard.stop)))
        for shard in waiting
        for start in range(shard.start, shard.stop, CHUNK)
    )

    def make(task: tuple[Shard, range]) -> tuple[Shard, list[_Image]]:
        shard, positions = task
        return shard, _make(splits[shard.split], positions, max_side, quality)

    with (
        tqdm(
            total=total,
            initial=total - left,
            unit=" images",
            unit_scale=True,
            desc="packing",
            disable=None,
        ) as bar,
        in_order(make, tasks, threads) as made,
    ):
        for shard, chunks in itertools.groupby(made, key=lambda result: result[0]):
            images = itertools.chain.from_iterable(chunk for _, chunk in chunks)
            temporary = shard.file.with_name(f"incomplete.{shard.file.name}")
            ledger = tally.new_ledger()
            write_records(temporary, tally.records(images, bar))
            if not ledger["labels"]:
                raise DataError("none of its images can be read", key=shard.file)
            shard.ledger.unlink(missing_ok=True)
            temporary.replace(shard.file)
            # Write the ledger last: it marks the shard as finished.
            replace_text(shard.ledger, json.dumps(ledger))


class _Image(NamedTuple):
    """A packed image: a serialized example, or the reason why there is none."""

    name: str
    record: bytes
    label: int
    how: str
    bytes_in: int
    bytes_out: int
    error: str


class _Tally:
    """The ledger of the shard being written, and the number of bad images in all shards."""

    def __init__(self, max_bad: int, bad: int):
        self._max_bad, self._bad = max_bad, bad
        self._bytes = 0
        self._ledger: dict[str, Any] = {}

    def new_ledger(self) -> dict[str, Any]:
        """Start a shard; return its ledger, which `records` fills."""
        self._ledger = {"labels": [], "bad": [], "how": Counter(), "bytes_in": 0, "bytes_out": 0}
        return self._ledger

    def records(self, images: Iterable[_Image], bar: tqdm) -> Iterator[bytes]:
        """Yield the records of a shard. Raise DataError if there are too many bad images."""
        for image in images:
            if image.error:
                self._leave_out(image)
            else:
                self._ledger["labels"].append(image.label)
                self._ledger["how"][image.how] += 1
                self._ledger["bytes_in"] += image.bytes_in
                self._ledger["bytes_out"] += image.bytes_out
                self._bytes += image.bytes_out
                yield image.record
            bar.set_postfix_str(f"{self._bytes / 1e6:,.0f} MB written", refresh=False)
            bar.update()

    def _leave_out(self, image: _Image) -> None:
        self._bad += 1
        if self._bad > self._max_bad:
            raise DataError(
                f"cannot be decoded ({image.error}), and only --max_bad={self._max_bad} unreadable images are "
                "allowed",
                key=image.name,
                cure="repair or remove it, or increase --max_bad",
            )
        self._ledger["bad"].append(image.name)
        log.warning("cannot decode %s (%s); left out (%d)", image.name, image.error, self._bad)


def _make(split: Split, positions: range, max_side: int, quality: int) -> list[_Image]:
    import tensorflow as tf

    indices = split.order[positions.start : positions.stop]
    read = split.source.read(indices)
    results = []
    for index, image, label in zip(indices, read.images, read.labels, strict=True):
        name = split.source.describe(int(index))
        try:
            packed = pack_image(
                image, max_side=max_side, quality=quality, upright=split.source.orientations
            )
        except ValueError as error:
            results.append(_Image(name, b"", -1, "bad", len(image), 0, one_line(error)))
            continue
        example = tf.train.Example()
        example.features.feature["image"].bytes_list.value.append(packed.encoded)
        example.features.feature["label"].int64_list.value.append(int(label))
        # Deterministic: otherwise the order of the two keys differs between processes.
        record = example.SerializeToString(deterministic=True)
        results.append(
            _Image(name, record, int(label), packed.how, len(image), len(packed.encoded), "")
        )
    return results
