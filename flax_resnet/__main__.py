"""Run a command: python -m flax_resnet COMMAND; `flax-resnet COMMAND` does the same."""

import sys

from flax_resnet.cli.command_start import note_start
from flax_resnet.cli.interrupts import exit_at_interrupt


def main() -> int:
    """Run the command that the process was started with, and return its exit code."""
    note_start()
    exit_at_interrupt()
    from flax_resnet.cli import commands

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())
