"""A checkpoint that is written again: the old one is kept aside until the new one is complete."""

import pathlib
import shutil


class Replaced:
    """The folder ``checkpoints.replaced`` beside the checkpoints.

    Args:
      checkpoints: the folder of the checkpoints.
    """

    def __init__(self, checkpoints: pathlib.Path):
        self._checkpoints = checkpoints
        self._aside = checkpoints.with_name("checkpoints.replaced")

    def put_aside(self, step: int) -> None:
        """Move the checkpoint of a step here."""
        self._aside.mkdir(exist_ok=True)
        (self._checkpoints / str(step)).rename(self._aside / str(step))

    def put_back(self) -> None:
        """Put a checkpoint back whose replacement was not completed."""
        if self._aside.is_dir():
            for old in self._aside.iterdir():
                if old.name.isdigit() and not (place := self._checkpoints / old.name).exists():
                    old.rename(place)
            shutil.rmtree(self._aside)

    def forget(self) -> None:
        """Delete what was put aside; its replacement is complete."""
        shutil.rmtree(self._aside, ignore_errors=True)
