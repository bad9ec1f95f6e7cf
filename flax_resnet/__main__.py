"""Run a command: python -m flax_resnet COMMAND; `flax-resnet COMMAND` does the same."""

import sys

from flax_resnet.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
