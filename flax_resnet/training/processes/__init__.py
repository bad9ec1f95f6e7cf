"""Several processes that train or evaluate together: who takes part, and what they agree on."""
