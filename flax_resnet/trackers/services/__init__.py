"""The tracking services. A new file with `ROWS` adds choices of ``log.trackers``."""
