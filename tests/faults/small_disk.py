"""A small disk of its own: a tmpfs whose size a test chooses."""

import contextlib
import os
import pathlib
import subprocess

import pytest


class SmallDisk:
    """A mounted tmpfs.

    Args:
      path: the folder to mount it on.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self._filler = path, path / ".filler"

    def mount(self, options: str) -> None:
        """Mount it, or change the options of the mount. Skip the test where that is not allowed."""
        remount = "remount," if os.path.ismount(self.path) else ""
        call = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(self.path)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")

    def protect(self) -> None:
        """Make it read-only for files that are opened from now on: mount the folder read-only over itself."""
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(self.path), str(self.path)], check=True)

    def release(self) -> None:
        """Make it writable again."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self) -> None:
        """Take all space that is left."""
        with contextlib.suppress(OSError), open(self._filler, "ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty(self) -> None:
        """Give the space back."""
        self._filler.unlink()


@contextlib.contextmanager
def small_disk(path, size):
    """Mount a tmpfs of this size at a new folder, for the block."""
    path.mkdir()
    disk = SmallDisk(path)
    try:
        disk.mount(f"size={size}")
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)
