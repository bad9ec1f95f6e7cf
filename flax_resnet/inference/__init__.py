"""Use of trained networks: predictions, evaluation, features, probes."""
