"""Losses, metrics, optimizers, schedules, and the moving average (EMA) of the weights."""
