"""Count the stack frames between the command and `model.apply`: python -m benchmarks.lab.frames

Runs `python -m flax_resnet.main --config configs/resnet18.py` with its default configuration in a temporary folder
until it traces the training step. Prints the stack frames of the package in the order of the calls.
"""

import contextlib
import pathlib
import runpy
import sys
import tempfile
import traceback
from typing import Any
from unittest import mock

import flax.linen as nn

from benchmarks import app

PACKAGE = pathlib.Path(__file__).parents[2] / "flax_resnet"
MODULE, STEP = "flax_resnet.main", "train_step"


class Traced(BaseException):
    """Raised to stop the command when it traces the training step."""


def frames() -> list[traceback.FrameSummary]:
    """Return the frames of the package above `model.apply`, from the command to the loss."""
    apply = nn.Module.apply
    above: list[traceback.FrameSummary] = []

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = [f for f in traceback.extract_stack() if PACKAGE in pathlib.Path(f.filename).parents]
        if any(frame.name == STEP for frame in own):
            above[:] = own
            raise Traced
        return apply(self, *args, **kwargs)

    with mock.patch.object(nn.Module, "apply", watched), tempfile.TemporaryDirectory() as folder:
        sys.argv = [MODULE, "--config=configs/resnet18.py", f"--workdir={folder}/run"]
        sys.argv += [f"--data_dir={folder}/data", "--compilation_cache=off"]
        with contextlib.suppress(Traced):
            runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
    return above


@app.command
def main() -> None:
    """Print the frames and their number."""
    app.Parser(description=__doc__.splitlines()[0]).parse_args()
    own = frames()
    for frame in own:
        where = pathlib.Path(frame.filename).relative_to(PACKAGE.parent)
        print(f"{where}:{frame.lineno}  {frame.name}")
    print(f"{len(own)} frames above model.apply")


if __name__ == "__main__":
    sys.exit(main())
