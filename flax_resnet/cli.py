"""The console script: flax-resnet COMMAND ..., each command a module of that name."""

import importlib
import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet import command
from flax_resnet.errors import suggestion

COMMANDS = {
    "main": "train a network, or go on training",
    "evaluate": "evaluate a saved run, or pretrained weights, on any split",
    "probe": "how good a network's features are on a dataset, without training it",
    "summary": "layers, parameters and multiply-adds of a network, or of many",
    "convert": "weights of timm, torchvision, Hugging Face or BiT to a run, and back",
    "prepare": "download a TFDS dataset, or pack images into one, for random access",
    "preview": "draw a batch as training sees it, augmented",
    "report": "draw a run's curves and some of its predictions",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the arguments behind the command's name to its module; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        return command.run("flax_resnet.cli", __doc__, _define, _list_commands, [])
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"error: command {name!r} is unknown: {suggestion(name, COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"flax_resnet.{name}").main(rest)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del values, argv


def _list_commands(values: flags.FlagValues) -> None:
    del values
    width = max(map(len, COMMANDS))
    print("flax-resnet COMMAND [--help] ...\n")
    print("\n".join(f"  {name:<{width}}  {help}" for name, help in COMMANDS.items()))


if __name__ == "__main__":
    sys.exit(main())
