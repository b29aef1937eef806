"""The back halves of the split devices, and the daemons of dom0."""
