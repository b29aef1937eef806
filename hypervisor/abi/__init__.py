"""Xen's public interface as data: one module per public header, names as in the headers."""
