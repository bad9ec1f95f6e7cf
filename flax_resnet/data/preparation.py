"""Prepare a TFDS dataset so that an interruption, a full disk or a second process does no harm."""

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from flax_resnet.errors import DataError, recognized

log = logging.getLogger("flax_resnet")


def prepare(builder: Any) -> None:
    """Prepare a dataset, unless it is prepared. What an interrupted preparation left is removed.

    Args:
      builder: the TFDS builder. If another process prepares the dataset meanwhile, the builder does not know it.

    Raises:
      OutputError: the disk is full or read-only.
      Exception: the network or the dataset's script may raise any type.
    """
    folder = pathlib.Path(builder.data_path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as alone:
        if folder.exists():
            return
        if alone:
            for leftover in folder.parent.glob(f"incomplete.??????_{folder.name}"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            builder.download_and_prepare()
        except Exception as error:
            if mistake := recognized(error):
                raise mistake from error
            raise


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[bool]:
    """Wait until no other process prepares a dataset; yield whether the file system can tell."""
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process prepares %s: waiting for its end", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without flock
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def preparation(name: str, data_dir: str) -> str:
    """Return the command that prepares a dataset."""
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m flax_resnet prepare --name={name}{where}"


def not_prepared(builder: Any, name: str, data_dir: str) -> DataError:
    """Return the error for a dataset that is not prepared; it names the folder searched and the command to run."""
    cure = f"run: {preparation(name, data_dir)}"
    if manual := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        folder = builder.data_path.parents[1] / "downloads" / "manual"
        cure = f"put the archives into {folder} ({' '.join(manual.split())}), then {cure}"
    return DataError(
        f"is not prepared: looked in {builder.data_path}", key="data.name", value=name, cure=cure
    )
