"""Suite `ring`: the arithmetic of the shared producer-consumer ring, both ends."""
