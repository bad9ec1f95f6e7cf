"""Where images come from, each a split that is read at random."""
