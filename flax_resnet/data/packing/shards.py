"""The files of a packed dataset: which image stands in which, and writing those that are not there yet."""

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

CHUNK = 8  # images a thread takes at a time


class Shard(NamedTuple):
    """A file of a packed dataset.

    Attributes:
      file: where it stands once it is finished.
      ledger: JSON file with what is known of it then: the labels of its records, names of images left out,
        bytes before and after, and how the images came about.
      split: which it is part of.
      start: its first place in the order of the split.
      stop: the place behind its last.
    """

    file: pathlib.Path
    ledger: pathlib.Path
    split: str
    start: int
    stop: int


def plan(folder: pathlib.Path, name: str, splits: dict[str, Split], size: int) -> list[Shard]:
    """Divides splits evenly into files, named as TFDS names them.

    Args:
      folder: of the files; those with their ledgers are in its sub-folder ledger.
      name: of the packed dataset.
      splits: to pack.
      size: images per file, at most.
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
    """Returns the ledger of a shard that is finished, else None."""
    try:
        ledger = json.loads(shard.ledger.read_text())
    except (OSError, ValueError):
        return None
    whole = shard.file.exists() and count_records(shard.file) == len(ledger["labels"])
    return ledger if whole else None


def write(
    shards: list[Shard],
    splits: dict[str, Split],
    *,
    max_side: int,
    quality: int,
    threads: int,
    max_bad: int,
) -> None:
    """Writes the shards that are not finished, one behind the other, each whole or not at all.

    Args:
      shards: of `plan`.
      splits: to pack.
      max_side: longer side of a stored image, pixels.
      quality: of JPEGs that are made, 1 to 100.
      threads: images decoded and encoded at once.
      max_bad: unreadable images that are left out, those of finished shards among them, before it stops.

    Raises:
      DataError: too many unreadable images, or no space.
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
        shard, places = task
        return shard, _make(splits[shard.split], places, max_side, quality)

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
                raise DataError(f"{shard.file}: none of its images can be read")
            shard.ledger.unlink(missing_ok=True)
            temporary.replace(shard.file)
            replace_text(shard.ledger, json.dumps(ledger))  # last: what has one is finished


class _Image(NamedTuple):
    """An image as it will stand: a serialized example, or why there is none."""

    name: str
    record: bytes
    label: int
    how: str
    bytes_in: int
    bytes_out: int
    error: str


class _Tally:
    """Keeps the ledger of the shard that is being written, and the count of bad images over all."""

    def __init__(self, max_bad: int, bad: int):
        self._max_bad, self._bad = max_bad, bad
        self._bytes = 0
        self._ledger: dict[str, Any] = {}

    def new_ledger(self) -> dict[str, Any]:
        """Begins a shard, and returns what will be filled while its records are drawn."""
        self._ledger = {"labels": [], "bad": [], "how": Counter(), "bytes_in": 0, "bytes_out": 0}
        return self._ledger

    def records(self, images: Iterable[_Image], bar: tqdm) -> Iterator[bytes]:
        """Yields the records of a shard. Raises DataError at one bad image too many."""
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
                f"cannot decode {image.name} ({image.error}), and --max_bad={self._max_bad} unreadable "
                "images are allowed"
            )
        self._ledger["bad"].append(image.name)
        log.warning("cannot decode %s (%s); left out (%d)", image.name, image.error, self._bad)


def _make(split: Split, places: range, max_side: int, quality: int) -> list[_Image]:
    import tensorflow as tf

    indices = split.order[places.start : places.stop]
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
        # Deterministic, or the two keys change places from process to process.
        record = example.SerializeToString(deterministic=True)
        results.append(
            _Image(name, record, int(label), packed.how, len(image), len(packed.encoded), "")
        )
    return results
