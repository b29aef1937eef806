"""Lab 2: start_info and shared_info."""
