"""The compiled step: gradient, update, evaluation, and the wrappers around them."""
