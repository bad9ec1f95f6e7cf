"""Tools for developers: compare compiled programs, training results and imports before and after a change."""
