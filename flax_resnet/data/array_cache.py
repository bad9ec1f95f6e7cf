"""Arrays that are stored on disk, so that they need not be computed again."""

import contextlib
import hashlib
import io
import os
import pathlib
import uuid
from collections.abc import Iterator

import numpy as np

CACHE = pathlib.Path("~/.cache/flax_resnet")  # the user's folder of all caches
DIGEST = 32  # bytes


def file_identity(path: str, name: str) -> str:
    """Return a text that differs if a file was changed: `name`, the file's size and the time of its last change."""
    status = os.stat(path)
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def load_array(folder: pathlib.Path, identity: str) -> np.ndarray | None:
    """Return the array of this identity; None if it is not stored, or if the stored file is corrupted."""
    try:
        content = _file(folder, identity).read_bytes()
        if content[:DIGEST] != _digest(identity, content[DIGEST:]):
            return None
        return np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False)
    except (OSError, ValueError):
        return None


def store_array(folder: pathlib.Path, identity: str, array: np.ndarray) -> None:
    """Store an array with a checksum, atomically. Raises OSError, for example if the folder is read-only."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    file = _file(folder, identity)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(file) as part:
        part.write_bytes(_digest(identity, content) + content)
        os.replace(part, file)


@contextlib.contextmanager
def _temporary(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Return a path of its own for this process; the file is removed if it is still there at the end."""
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _file(folder: pathlib.Path, identity: str) -> pathlib.Path:
    try:
        folder = folder.expanduser()
    except RuntimeError as error:  # the user has no home folder
        raise OSError(str(error)) from error
    name = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    return folder / name[:32]


def _digest(identity: str, content: bytes) -> bytes:
    return hashlib.sha256(identity.encode(errors="surrogateescape") + b"\0" + content).digest()
