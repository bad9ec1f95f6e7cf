"""Batches of a split, streamed to the devices or kept there."""
