"""python -m benchmarks.accuracy EXPERIMENT: see command.py."""

import sys

from benchmarks.accuracy.command import main

if __name__ == "__main__":
    sys.exit(main())
