"""Entry point of `python -m benchmarks.accuracy EXPERIMENT`; command.py describes it."""

import sys

from benchmarks.accuracy.command import main

if __name__ == "__main__":
    sys.exit(main())
