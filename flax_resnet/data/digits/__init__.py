"""The embedded dataset of handwritten digits, which needs no download."""
