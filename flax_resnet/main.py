"""Train a network: python -m flax_resnet.main --config configs/resnet18.py --workdir /tmp/run."""

import sys

from flax_resnet.cli.command_start import note_start
from flax_resnet.cli.interrupts import exit_at_interrupt

if __name__ == "__main__":  # before the imports, which take seconds
    note_start()
    exit_at_interrupt()

from flax_resnet.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
