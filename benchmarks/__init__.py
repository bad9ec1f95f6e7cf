"""Benchmarks: python -m benchmarks.NAME. None yet; a claim of speed needs one first."""
