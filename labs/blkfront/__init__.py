"""Lab 8: a block frontend."""
