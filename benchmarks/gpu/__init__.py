"""One command that measures a machine with GPUs in stages, each with its own time limit and record."""
