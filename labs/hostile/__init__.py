"""Lab 11: a hostile guest."""
