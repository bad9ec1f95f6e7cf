"""State, step, feed, checkpoint, writers, and the loop that reads as prose."""
