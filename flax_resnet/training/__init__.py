"""Training: the state, the compiled step, the feeds, the run folder, and the training loop."""
