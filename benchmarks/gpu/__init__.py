"""One command that measures a machine with GPUs in stages, each with a time limit and a record of its own."""
