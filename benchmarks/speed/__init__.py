"""How fast steps, inference and their parts are."""
