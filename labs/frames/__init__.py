"""Lab 3: machine and pseudo-physical memory."""
