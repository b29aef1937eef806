"""Lab 5: event channels."""
