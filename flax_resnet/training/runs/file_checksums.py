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
    except ValueError:
        return f"{FILES} is truncated or changed"
    if not isinstance(listed, dict):
        return f"{FILES} is truncated or changed"
    for name, known in listed.items():
        try:
            found = _size_and_checksum(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        if found != known:
            return f"{name} is truncated or changed"
    return ""


def _size_and_checksum(file: pathlib.Path) -> list[int]:
    size = checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]
