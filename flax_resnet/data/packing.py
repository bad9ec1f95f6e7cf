"""Any source packed into a TFDS dataset of its own: JPEGs of bounded size, stored for random access.

Which image stands in which file, and every byte of it, depends on the source and the options alone. So a packing
that was interrupted goes on behind the files that are finished, and ends as if nothing had happened. It is made
in a folder that no reader takes for a dataset, checked, and then given its name.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import PIL
from PIL import features as pillow
from tqdm import tqdm

from flax_resnet.config import Data
from flax_resnet.data.jpeg import pack_image
from flax_resnet.data.ordered import in_order
from flax_resnet.data.preparation import count_records, replace_text, write_records
from flax_resnet.data.source import EMBEDDED
from flax_resnet.data.splits import Split, folder_splits, tfds_splits
from flax_resnet.errors import ConfigError, DataError, one_line

log = logging.getLogger("flax_resnet")

VERSION = "1.0.0"
CHUNK = 8  # images a thread takes at a time


@dataclasses.dataclass(frozen=True)
class Packing:
    """What to pack, and how. Raises ConfigError for a value that is not allowed.

    Attributes:
      new_name: of the packed dataset: lower case letters, digits and _.
      name: TFDS dataset to pack, as name, name/config or name:version; or empty.
      path: folder of images to pack; or empty.
      data_dir: TFDS data folder of both datasets; empty for TFDS's own.
      max_side: longer side of a stored image, pixels; at least 1.
      quality: of JPEGs that are made, 1 to 100.
      holdout: share of a folder without train/ that becomes the split test, 0.01 to 0.99.
      shard_size: images per file, at most; at least 1.
    """

    new_name: str
    name: str = ""
    path: str = ""
    data_dir: str = ""
    max_side: int = 400
    quality: int = 90
    holdout: float = Data().holdout
    shard_size: int = 2048

    def __post_init__(self) -> None:
        import tensorflow_datasets as tfds

        if bool(self.name) == bool(self.path):
            raise ConfigError("--pack needs one of --name (TFDS dataset) and --path (folder)")
        if not re.fullmatch("[a-z][a-z0-9_]*", self.new_name):
            raise ConfigError(
                f"--pack={self.new_name!r}: must be a name for TFDS: lower case letters, digits and _, "
                "a letter first"
            )
        if self.new_name in {*EMBEDDED, *tfds.list_builders(with_community_datasets=False)}:
            raise ConfigError(
                f"--pack={self.new_name!r}: is the name of another TFDS dataset, which would be opened instead"
            )
        for flag, low, high in (
            ("max_side", 1, 65535),  # JPEG's limit
            ("quality", 1, 100),
            ("holdout", 0.01, 0.99),
            ("shard_size", 1, 10**9),
        ):
            if not low <= getattr(self, flag) <= high:
                raise ConfigError(
                    f"--{flag}={getattr(self, flag)}: must be between {low} and {high}"
                )

    @property
    def root(self) -> pathlib.Path:
        """The folder of all versions of the packed dataset."""
        import tensorflow_datasets as tfds

        data_dir = pathlib.Path(self.data_dir or tfds.core.constants.DATA_DIR)
        return data_dir.expanduser().resolve() / self.new_name

    def options(self) -> dict[str, Any]:
        """Returns what the packed files depend on, besides what the source holds."""
        kept = {"max_side": self.max_side, "quality": self.quality, "shard_size": self.shard_size}
        if self.path:
            path = str(pathlib.Path(self.path).expanduser().resolve())
            return {"path": path, "holdout": self.holdout, **kept}
        return {"name": self.name, **kept}

    def open(self) -> dict[str, Split]:
        """Opens the source. Raises DataError as `open_source` does."""
        if self.path:
            return folder_splits(self.path, self.holdout)
        return tfds_splits(self.name, self.data_dir)


class _Shard(NamedTuple):
    file: pathlib.Path
    ledger: pathlib.Path  # what is known of it once it is finished
    split: str
    start: int
    stop: int


class _Made(NamedTuple):
    """One image: a serialized example, or why there is none."""

    name: str
    record: bytes
    label: int
    how: str
    bytes_in: int
    bytes_out: int
    error: str


def pack_dataset(packing: Packing, *, threads: int = 0, max_bad: int = 10) -> str:
    """Packs a dataset, or goes on packing it.

    Args:
      packing: what and how.
      threads: images decoded and encoded at once; 0 for one per core.
      max_bad: unreadable images that are named and left out before the packing stops; at least 0.

    Returns:
      What was done, for a person.

    Raises:
      DataError: no such source; too many unreadable images; something else at the destination, or a packing
        begun with other options or another source; no space; a packed record that is not what it should be.
    """
    folder, work = packing.root / VERSION, packing.root / f"incomplete.{VERSION}"
    threads = threads or os.cpu_count() or 1
    if folder.exists():
        return _already(folder, packing)
    splits = packing.open()
    try:
        with _held(work), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data, large images
            _begin(work, packing, splits)
            shards = _plan(work, packing, splits)
            _write(shards, splits, packing, threads, max_bad)
            return _finish(folder, work, packing, splits, shards, threads)
    except OSError as error:
        raise DataError(f"{work} cannot be written: {one_line(error)}") from error


def _already(folder: pathlib.Path, packing: Packing) -> str:
    try:
        begun = json.loads((folder / "packing.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds a dataset that was not packed by this command: choose another name"
        ) from error
    _compare(begun["options"], packing.options(), f"{folder} was packed")
    return f"{folder} is complete: {begun['result']}"


def _compare(begun: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    for key in {**wanted, **begun}:
        if begun.get(key) != wanted.get(key):
            raise DataError(
                f"{where} with {key}={begun.get(key)}, not {wanted.get(key)}: give the same options, "
                "choose another name, or delete it"
            )


@contextlib.contextmanager
def _held(work: pathlib.Path) -> Iterator[None]:
    """Keeps a second process from packing into the same folder; the system lets go when a process ends."""
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{work}: another process is packing into it") from error
        yield
    finally:
        os.close(descriptor)


def _begin(work: pathlib.Path, packing: Packing, splits: dict[str, Split]) -> None:
    """Writes down what is being packed; refuses to go on with something else."""
    (work / "ledger").mkdir(exist_ok=True)
    state = {
        "options": packing.options(),
        "source": {key: split.identity for key, split in splits.items()},
        "encoder": {"pillow": PIL.__version__, "libjpeg": str(pillow.version("jpg"))},
    }
    file = work / "packing.json"
    if not file.exists():
        return replace_text(file, json.dumps(state, indent=2))
    begun = json.loads(file.read_text())
    _compare(begun["options"], state["options"], f"{work} was begun")
    _compare(begun["encoder"], state["encoder"], f"{work} was begun")
    if begun["source"] != state["source"]:
        raise DataError(
            f"{work} was begun when its source held other files: delete it to begin again"
        )
    return None


def _plan(work: pathlib.Path, packing: Packing, splits: dict[str, Split]) -> list[_Shard]:
    shards = []
    for key, split in splits.items():
        size = len(split.source)
        count = -(-size // packing.shard_size)
        for number in range(count):
            name = f"{packing.new_name}-{key}.array_record-{number:05d}-of-{count:05d}"
            ledger = work / "ledger" / f"{key}-{number:05d}.json"
            start, stop = size * number // count, size * (number + 1) // count
            shards.append(_Shard(work / name, ledger, key, start, stop))
    return shards


def _finished(shard: _Shard) -> dict[str, Any] | None:
    """Returns the ledger of a shard that is finished."""
    try:
        ledger = json.loads(shard.ledger.read_text())
    except (OSError, ValueError):
        return None
    finished = shard.file.exists() and count_records(shard.file) == len(ledger["labels"])
    return ledger if finished else None


def _write(
    shards: list[_Shard], splits: dict[str, Split], packing: Packing, threads: int, max_bad: int
) -> None:
    ledgers = {shard: _finished(shard) for shard in shards}
    waiting = [shard for shard, ledger in ledgers.items() if not ledger]
    bad = sum(len(ledger["bad"]) for ledger in ledgers.values() if ledger)
    total = sum(shard.stop - shard.start for shard in shards)
    left = sum(shard.stop - shard.start for shard in waiting)
    if left < total:
        log.info("going on: %d of %d images are packed", total - left, total)
    tasks = (
        (shard, range(start, min(start + CHUNK, shard.stop)))
        for shard in waiting
        for start in range(shard.start, shard.stop, CHUNK)
    )

    def make(task: tuple[_Shard, range]) -> tuple[_Shard, list[_Made]]:
        shard, places = task
        return shard, _make(splits[shard.split], places, packing)

    with (
        tqdm(
            total=total, initial=total - left, unit=" images", unit_scale=True, desc="packing",
            disable=None,
        ) as bar,
        in_order(make, tasks, threads) as made,
    ):  # fmt: skip
        written = 0
        for shard, results in itertools.groupby(made, key=lambda result: result[0]):
            ledger = {"labels": [], "bad": [], "how": Counter(), "bytes_in": 0, "bytes_out": 0}

            def records(results=results, ledger=ledger) -> Iterator[bytes]:  # noqa: ANN001
                for image in itertools.chain.from_iterable(images for _, images in results):
                    bar.update()
                    if image.error:
                        ledger["bad"].append(image.name)
                        _leave_out(image, bad + len(ledger["bad"]), max_bad)
                        continue
                    ledger["labels"].append(image.label)
                    ledger["how"][image.how] += 1
                    ledger["bytes_in"] += image.bytes_in
                    ledger["bytes_out"] += image.bytes_out
                    yield image.record

            temporary = shard.file.with_name(f"incomplete.{shard.file.name}")
            write_records(temporary, records())
            if not ledger["labels"]:
                raise DataError(f"{shard.file}: none of its images can be read")
            shard.ledger.unlink(missing_ok=True)
            temporary.replace(shard.file)
            replace_text(shard.ledger, json.dumps(ledger))
            bad += len(ledger["bad"])
            written += ledger["bytes_out"]
            bar.set_postfix_str(f"{written / 1e6:,.0f} MB written", refresh=False)


def _leave_out(image: _Made, count: int, max_bad: int) -> None:
    if count > max_bad:
        raise DataError(
            f"cannot decode {image.name} ({image.error}), and --max_bad={max_bad} unreadable images are "
            "allowed"
        )
    log.warning("cannot decode %s (%s); left out (%d)", image.name, image.error, count)


def _make(split: Split, places: range, packing: Packing) -> list[_Made]:
    import tensorflow as tf

    indices = split.order[places.start : places.stop]
    read = split.source.read(indices)
    results = []
    for index, image, label in zip(indices, read.images, read.labels, strict=True):
        name = split.source.describe(int(index))
        try:
            packed = pack_image(
                image, max_side=packing.max_side, quality=packing.quality, upright=split.upright
            )
        except ValueError as error:
            results.append(_Made(name, b"", -1, "bad", len(image), 0, one_line(error)))
            continue
        example = tf.train.Example()
        example.features.feature["image"].bytes_list.value.append(packed.encoded)
        example.features.feature["label"].int64_list.value.append(int(label))
        # Deterministic, or the two keys change places from process to process.
        record = example.SerializeToString(deterministic=True)
        results.append(
            _Made(name, record, int(label), packed.how, len(image), len(packed.encoded), "")
        )
    return results


def _finish(
    folder: pathlib.Path,
    work: pathlib.Path,
    packing: Packing,
    splits: dict[str, Split],
    shards: list[_Shard],
    threads: int,
) -> str:
    """Adds the metadata, checks everything, and gives the folder its name."""
    import tensorflow_datasets as tfds

    from flax_resnet.data.verification import verify

    for leftover in work.glob("incomplete.*"):
        leftover.unlink()
    ledgers = {shard: _finished(shard) for shard in shards}
    class_names = next(iter(splits.values())).source.class_names
    labels = {
        key: [ledgers[shard]["labels"] for shard in shards if shard.split == key] for key in splits
    }
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features={
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(class_names)),
        },
        split_infos=[
            tfds.core.SplitInfo(
                name=key,
                shard_lengths=[len(shard) for shard in labels[key]],
                num_bytes=sum(ledgers[s]["bytes_out"] for s in shards if s.split == key),
            )
            for key in splits
        ],
        version=VERSION,
        check_data=False,  # would read it as tfrecord; verify() reads all of it
        supervised_keys=("image", "label"),
        description=f"{packing.name or pathlib.Path(packing.path).resolve().name}, with images of at most "
        f"{packing.max_side} pixels a side.",
    )
    verify(work, labels, class_names, threads)
    result = _summary(ledgers, labels)
    state = json.loads((work / "packing.json").read_text())
    state["left_out"] = [name for ledger in ledgers.values() for name in ledger["bad"]]
    replace_text(work / "packing.json", json.dumps({**state, "result": result}, indent=2))
    shutil.rmtree(work / "ledger")
    work.replace(folder)
    where = f" --config.data.data_dir={packing.root.parent}" if packing.data_dir else ""
    evaluation = next((key for key in ("test", "validation") if key in splits), "train")
    return (
        f"{folder}: {result}\ntrain on it with --config.data.source=tfds --config.data.name="
        f"{packing.new_name}{where} --config.data.eval_split={evaluation}"
    )


def _summary(ledgers: dict[_Shard, dict[str, Any]], labels: dict[str, list[list[int]]]) -> str:
    before, after = (sum(x[key] for x in ledgers.values()) for key in ("bytes_in", "bytes_out"))
    how = sum((Counter(x["how"]) for x in ledgers.values()), Counter())
    counts = ", ".join(f"{key} {sum(map(len, parts)):,}" for key, parts in labels.items())
    bad = sum(len(x["bad"]) for x in ledgers.values())
    return (
        f"{counts} images; {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after ({after / before:.0%}); "
        f"{how['resized']:,} resized, {how['encoded']:,} encoded anew, {how['kept']:,} kept as they were, "
        f"{bad:,} unreadable"
    )
