"""Writing of a file as a whole."""

import os
import pathlib

from flax_resnet.errors import writing


def atomic_write(path: pathlib.Path, content: bytes) -> None:
    """Write a file: whoever reads it gets the old content or the new one. Raises OutputError."""
    unfinished = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
