"""Lab 4: page tables and pinning."""
