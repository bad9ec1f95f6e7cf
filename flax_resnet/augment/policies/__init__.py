"""The augmentation policies, a row each. A new file with `ROWS` is a new choice of ``augment.policy``."""
