"""Lab 6: grant tables."""
