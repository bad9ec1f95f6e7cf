"""The embedded dataset: handwritten digits, without a network."""
