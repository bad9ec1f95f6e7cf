"""The layers that networks are made of."""
