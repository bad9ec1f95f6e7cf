"""Plots drawn by the commands."""
