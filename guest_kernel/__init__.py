"""A small paravirtualized operating system kernel, written in Python."""
