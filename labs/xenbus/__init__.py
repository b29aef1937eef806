"""Lab 9: xenstore and xenbus."""
