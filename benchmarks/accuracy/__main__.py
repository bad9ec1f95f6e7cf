"""python -m benchmarks.accuracy EXPERIMENT: see command.py."""

from benchmarks.accuracy.command import main

if __name__ == "__main__":
    main()
