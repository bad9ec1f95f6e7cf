"""Layers: convolutions, normalisation, activations, attention, pooling and dropout."""
