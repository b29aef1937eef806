"""Lab 1: hypercalls."""
