"""The public headers under xen/io: rings and the protocols of the split devices."""
