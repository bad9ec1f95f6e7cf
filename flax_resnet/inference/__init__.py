"""What a trained network is used for: predictions, evaluation, features, probes."""
