"""One module a format: a row with the code that writes it and the code that loads it."""
