"""The front halves of the split devices."""
