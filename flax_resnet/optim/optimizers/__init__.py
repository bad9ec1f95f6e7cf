"""The optimizers, a row each. A new file with `ROWS` is a new choice of ``optimizer.name``."""
