"""Run a command of flax_resnet: flax-resnet COMMAND ..., or python -m flax_resnet COMMAND ..."""

import importlib
import sys
from collections.abc import Sequence

from flax_resnet.cli.exit_codes import exit_code
from flax_resnet.errors import ConfigError, suggestion
from flax_resnet.version import __version__

# Each command is a module of this folder with a `main(argv)` that returns the exit code.
COMMANDS = {
    "train": "train a network, or resume training",
    "evaluate": "evaluate a run, or pretrained weights, on any split",
    "predict": "predict the classes of images: files, folders, or paths on standard input",
    "probe": "measure the quality of a network's features on a dataset, without training the network",
    "summary": "print layers, parameters and multiply-adds of one network or many",
    "convert": "convert weights of timm, torchvision, Hugging Face or BiT to a run, and back",
    "prepare": "download a TFDS dataset, or pack images into one, for random access",
    "preview": "draw an augmented training batch",
    "report": "write a page on a run: its result, classes, mistakes with Grad-CAM, labels to check",
    "settings": "search the settings of a configuration",
    "env": "print versions, devices and caches, for a bug report",
}
ALIASES = {"main": "train"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument, and return its exit code.

    Args:
      argv: arguments without the program's name; None for `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        return _show(overview())
    if arguments[0] == "--version":
        return _show(f"flax_resnet {__version__}")
    name, *rest = arguments
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        near = suggestion(name, [*COMMANDS, *ALIASES])
        error = ConfigError("unknown command", key=name, cure=near)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return importlib.import_module(f"flax_resnet.cli.{name}").main(rest)


def _show(text: str) -> int:
    """Print a text and return the exit code."""
    with exit_code() as ended:
        print(text)
    return ended.code


def overview() -> str:
    """Return the list of commands, one per line."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {help}" for name, help in COMMANDS.items()]
    head = "flax-resnet COMMAND [--help] ..., or flax-resnet --version"
    return "\n".join([__doc__, "", head, "", *rows])
