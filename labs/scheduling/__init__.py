"""Lab 10: time and scheduling."""
