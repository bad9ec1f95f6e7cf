"""The accuracy that training recipes reach."""
