"""Pack any source into a new TFDS dataset: JPEGs of bounded size, stored for random access.

The images in each file, and all their bytes, depend only on the source and the options. So an interrupted packing
resumes after the finished files and gives the same dataset. The dataset is built in a folder that no reader takes
for a dataset, verified, and then renamed.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import PIL
from PIL import features as pillow

from flax_resnet.data.array_record import replace_text
from flax_resnet.data.data_section import EVAL_FRACTION
from flax_resnet.data.packing import shards as packed_shards
from flax_resnet.data.packing.shards import Shard
from flax_resnet.data.packing.splits import Split, file_splits, tfds_splits
from flax_resnet.data.sources.tfds import EMBEDDED
from flax_resnet.errors import ConfigError, DataError, printable, writing

log = logging.getLogger("flax_resnet")

VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Packing:
    """The source to pack, and the options. Raises ConfigError for an invalid value.

    Attributes:
      new_name: name of the packed dataset: lower case letters, digits and _.
      name: TFDS dataset to pack: name, name/config or name:version; empty to pack `path`.
      path: folder of images to pack; empty to pack `name`.
      data_dir: TFDS data folder of both datasets; empty for TFDS's default.
      max_side: maximum of the longer side of a stored image, in pixels; at least 1.
      quality: quality of newly encoded JPEGs, 1 to 100.
      eval_fraction: share of a folder without train/ that becomes the split `test`, 0.01 to 0.99.
      shard_size: maximum number of images per file; at least 1.
    """

    new_name: str
    name: str = ""
    path: str = ""
    data_dir: str = ""
    max_side: int = 400
    quality: int = 90
    eval_fraction: float = EVAL_FRACTION
    shard_size: int = 2048

    def __post_init__(self) -> None:
        import tensorflow_datasets as tfds

        if bool(self.name) == bool(self.path):
            raise ConfigError(
                "needs one of --name (TFDS dataset) and --path (folder)",
                key="--pack",
                value=self.new_name,
            )
        if not re.fullmatch("[a-z][a-z0-9_]*", self.new_name):
            raise ConfigError(
                key="--pack",
                value=self.new_name,
                allowed="a name for TFDS: lower case letters, digits and _, a letter first",
            )
        if self.new_name in {*EMBEDDED, *tfds.list_builders(with_community_datasets=False)}:
            raise ConfigError(
                "another TFDS dataset has this name and would be opened instead",
                key="--pack",
                value=self.new_name,
                cure="choose another name",
            )
        for flag, low, high in (
            ("max_side", 1, 65535),  # JPEG's limit
            ("quality", 1, 100),
            ("eval_fraction", 0.01, 0.99),
            ("shard_size", 1, 10**9),
        ):
            if not low <= (value := getattr(self, flag)) <= high:
                raise ConfigError(key=f"--{flag}", value=value, allowed=f"between {low} and {high}")

    @property
    def root(self) -> pathlib.Path:
        """The folder of all versions of the packed dataset."""
        import tensorflow_datasets as tfds

        data_dir = pathlib.Path(self.data_dir or tfds.core.constants.DATA_DIR)
        return data_dir.expanduser().resolve() / self.new_name

    def options(self) -> dict[str, Any]:
        """Return the options that determine the packed files, together with the content of the source."""
        sizes = {"max_side": self.max_side, "quality": self.quality, "shard_size": self.shard_size}
        if self.path:
            path = str(pathlib.Path(self.path).expanduser().resolve())
            return {"path": path, "eval_fraction": self.eval_fraction, **sizes}
        return {"name": self.name, **sizes}

    def open(self) -> dict[str, Split]:
        """Open the splits of the source. Raise DataError like `open_source`."""
        if self.path:
            return file_splits(self.path, self.eval_fraction)
        return tfds_splits(self.name, self.data_dir)


def pack_dataset(packing: Packing, *, threads: int = 0, max_bad: int = 10) -> str:
    """Pack a dataset, or resume an interrupted packing.

    Args:
      packing: the source and the options.
      threads: images decoded and encoded in parallel; 0 for one per core.
      max_bad: number of unreadable images that are logged and left out; one more stops the packing. At least 0.

    Returns:
      A readable summary.

    Raises:
      DataError: the source does not exist; too many images are unreadable; the destination holds another dataset,
        or a packing with other options or another source; or a packed record fails verification.
      OutputError: the disk is full or read-only.
    """
    folder, work = packing.root / VERSION, packing.root / f"incomplete.{VERSION}"
    threads = threads or os.cpu_count() or 1
    if folder.exists():
        return _already(folder, packing)
    splits = packing.open()
    with writing(work), _held(work), warnings.catch_warnings():
        # Ignore warnings about odd EXIF data and large images.
        warnings.filterwarnings("ignore", module="PIL")
        _begin(work, packing, splits)
        shards = packed_shards.plan(work, packing.new_name, splits, packing.shard_size)
        packed_shards.write(
            shards,
            splits,
            max_side=packing.max_side,
            quality=packing.quality,
            threads=threads,
            max_bad=max_bad,
        )
        return _finish(folder, work, packing, splits, shards, threads)


def _already(folder: pathlib.Path, packing: Packing) -> str:
    try:
        begun = json.loads((folder / "packing.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            "holds a dataset that was not packed by this command",
            key=folder,
            cure="choose another name",
        ) from error
    _compare(folder, "was packed", begun["options"], packing.options())
    # The packed dataset stays usable if its source is gone.
    with contextlib.suppress(DataError):
        identities = {key: split.identity for key, split in packing.open().items()}
        if identities != begun["source"]:
            log.warning("%s was packed when its source held other files", folder)
    # Ledgers remain only if the packing was killed after it renamed the dataset's folder.
    shutil.rmtree(folder / "ledger", ignore_errors=True)
    return f"{folder} is complete: {begun['result']}\n{_training(packing, list(begun['source']))}"


def _training(packing: Packing, splits: list[str]) -> str:
    """Return a sentence with the command that trains on the packed dataset."""
    where = f" --data_dir={packing.root.parent}" if packing.data_dir else ""
    evaluation = next((key for key in ("test", "validation") if key in splits), "train")
    return (
        f"train on it: python -m flax_resnet.main --config configs/resnet18.py:tfds={packing.new_name}{where} "
        f"--config.data.eval_split={evaluation} --workdir=runs/{packing.new_name}"
    )


def _compare(
    folder: pathlib.Path, done: str, begun: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Raise DataError if the options of a folder differ. `done` is "was packed" or "was begun", for the message."""
    for key in {**wanted, **begun}:
        if begun.get(key) != wanted.get(key):
            raise DataError(
                f"{done} with {key}={begun.get(key)}, not {wanted.get(key)}",
                key=folder,
                cure="give the same options, choose another name, or delete the folder",
            )


@contextlib.contextmanager
def _held(work: pathlib.Path) -> Iterator[None]:
    """Lock the folder against a second packing process; the system releases the lock when a process ends."""
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError("another process is packing into it", key=work) from error
        yield
    finally:
        os.close(descriptor)


def _begin(work: pathlib.Path, packing: Packing, splits: dict[str, Split]) -> None:
    """Record the source and the options, or raise DataError if the folder was started with others."""
    (work / "ledger").mkdir(exist_ok=True)
    state = {
        "options": packing.options(),
        "source": {key: split.identity for key, split in splits.items()},
        "encoder": {
            "pillow": PIL.__version__,
            "libjpeg": pillow.version("libjpeg_turbo") or pillow.version("jpg"),
        },
    }
    file = work / "packing.json"
    if not file.exists():
        replace_text(file, json.dumps(state, indent=2))
    begun = json.loads(file.read_text())
    for part in ("options", "encoder"):
        _compare(work, "was begun", begun[part], state[part])
    if begun["source"] != state["source"]:
        raise DataError(
            "was begun when its source held other files",
            key=work,
            cure="delete the folder to begin again",
        )


def _finish(
    folder: pathlib.Path,
    work: pathlib.Path,
    packing: Packing,
    splits: dict[str, Split],
    shards: list[Shard],
    threads: int,
) -> str:
    """Add the metadata, verify the dataset, and rename the folder."""
    import tensorflow_datasets as tfds

    from flax_resnet.data.packing.verification import verify

    for leftover in work.glob("incomplete.*"):
        leftover.unlink()
    ledgers: dict[Shard, dict[str, Any]] = {}
    for shard in shards:
        ledger = packed_shards.finished(shard)
        assert ledger is not None  # `write` has finished every shard
        ledgers[shard] = ledger
    source = packing.name or printable(pathlib.Path(packing.path).resolve().name)
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
        check_data=False,  # the check would read the files as tfrecord; verify() checks all records
        supervised_keys=("image", "label"),
        description=f"{source}, with images of at most {packing.max_side} pixels a side.",
    )
    verify(work, labels, class_names, threads)
    result = _summary(ledgers, labels)
    state = json.loads((work / "packing.json").read_text())
    state["left_out"] = [name for ledger in ledgers.values() for name in ledger["bad"]]
    replace_text(work / "packing.json", json.dumps({**state, "result": result}, indent=2))
    work.replace(folder)
    shutil.rmtree(folder / "ledger", ignore_errors=True)
    return f"{folder}: {result}\n{_training(packing, list(splits))}"


def _summary(ledgers: dict[Shard, dict[str, Any]], labels: dict[str, list[list[int]]]) -> str:
    before, after = (sum(x[key] for x in ledgers.values()) for key in ("bytes_in", "bytes_out"))
    how = sum((Counter(x["how"]) for x in ledgers.values()), Counter())
    counts = ", ".join(f"{key} {sum(map(len, parts)):,}" for key, parts in labels.items())
    bad = sum(len(x["bad"]) for x in ledgers.values())
    return (
        f"{counts} images; {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after ({after / before:.0%}); "
        f"{how['resized']:,} resized, {how['encoded']:,} encoded anew, {how['kept']:,} kept as they were, "
        f"{bad:,} unreadable"
    )
