"""How fast the input pipeline is."""
