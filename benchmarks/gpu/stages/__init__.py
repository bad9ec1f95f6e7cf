"""The stages of --quick. Each is a module that answers one question and runs in its own process."""
