"""Experiments beside the benchmarks: what a change does to training."""
