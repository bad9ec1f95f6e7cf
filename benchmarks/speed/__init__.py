"""The speed of training steps, inference and their parts."""
