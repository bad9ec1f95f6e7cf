"""Losses, metrics, optimizers, schedules, and averages of the weights."""
