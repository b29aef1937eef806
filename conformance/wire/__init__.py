"""Subjects in any language: processes that are a domain's driver, over a Unix socket (docs/conformance-wire.md)."""
