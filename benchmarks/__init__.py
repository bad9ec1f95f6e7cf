"""Benchmarks: benchmarks/README.md lists the commands."""
