"""Experiment trackers, such as MLflow and Weights & Biases, behind one small interface."""
