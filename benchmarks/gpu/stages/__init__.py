"""The stages of --quick, each a module that answers one question in a process of its own."""
