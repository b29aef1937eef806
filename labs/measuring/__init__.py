"""Lab 12: measuring."""
