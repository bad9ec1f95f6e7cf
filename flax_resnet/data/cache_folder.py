"""The folder of files that the package can compute again."""

import os
import pathlib


def cache_folder(name: str) -> pathlib.Path:
    """Return the folder `name` in $XDG_CACHE_HOME/flax_resnet, by default ~/.cache/flax_resnet.

    Source: XDG Base Directory Specification 0.8, which ignores a relative path.
    """
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = pathlib.Path(os.path.expanduser("~")) / ".cache"
    return base / "flax_resnet" / name
