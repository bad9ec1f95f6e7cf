"""Which accuracy recipes reach."""
