"""How a platform computes what models ask for."""
