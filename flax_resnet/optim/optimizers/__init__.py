"""The optimizers, one file each. A new file with `ROWS` adds choices of ``optimizer.name``."""
