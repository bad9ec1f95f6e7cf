"""The augmentation policies, as `PolicyRow`s. A new file that defines `ROWS` adds choices of ``augment.policy``."""
