"""Lab 7: the ring."""
