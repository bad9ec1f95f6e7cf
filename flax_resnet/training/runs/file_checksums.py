"""The checksums of a checkpoint's files, which prove whether a file is missing, truncated or changed."""

import json
import pathlib
import zlib

FILES = "files.json"
CHUNK = 2**24  # bytes read at once


def write_file_checksums(folder: pathlib.Path) -> None:
    """Write files.json: {path below `folder`: [bytes, CRC-32]} of all files in its folders. Raises OSError.

    Files at its top are left out: Orbax changes its own one, _CHECKPOINT_METADATA, until the checkpoint is done.
    """
    found = {
        file.relative_to(folder).as_posix(): _size_and_checksum(file)
        for file in sorted(folder.glob("*/**/*"))
        if file.is_file()
    }
    (folder / FILES).write_text(json.dumps(found))


def proof_of_damage(folder: pathlib.Path) -> str:
    """Return which file of a checkpoint is damaged and how, or "" if none is.

    Raises:
      OSError: a file cannot be read, which proves nothing: the cause may be a lack of file handles, the rights of
        the user, or the network.
    """
    try:
        listed = json.loads((folder / FILES).read_text())
    except FileNotFoundError:
        return f"{FILES} is missing" if folder.is_dir() else ""
    except (ValueError, RecursionError):
        return f"{FILES} is truncated or changed"
    if not isinstance(listed, dict):
        return f"{FILES} is truncated or changed"
    for name, known in listed.items():
        if not is_inside(folder, name):
            return f"{name} in {FILES} is no file of the checkpoint"
        try:
            found = _size_and_checksum(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found != known:
            return f"{name} is truncated or changed"
    return ""


def is_inside(folder: pathlib.Path, name: str) -> bool:
    """Return whether a name means a file or folder inside a folder, or nothing; links are followed.

    A name that someone else wrote may mean any file of this machine, or one that never ends, such as /dev/zero.
    """
    try:
        path = (folder / name).resolve()
        known = path.is_file() or path.is_dir() or not path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, or a loop of links
        return False
    return known and path.is_relative_to(folder.resolve())


def _size_and_checksum(file: pathlib.Path) -> list[int]:
    size = checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]
