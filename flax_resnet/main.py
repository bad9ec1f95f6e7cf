"""Train a network: python -m flax_resnet.main --config configs/resnet18.py --workdir /tmp/run."""

import sys

from flax_resnet.cli.exit_codes import exit_at_interrupt

with exit_at_interrupt(is_process=__name__ == "__main__"):  # the imports take seconds
    from flax_resnet.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
