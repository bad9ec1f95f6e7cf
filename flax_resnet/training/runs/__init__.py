"""The run folder: configuration, records, checkpoints."""
