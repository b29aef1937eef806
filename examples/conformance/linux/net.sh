# The job of a ramdisk with which a network frontend is judged (docs/conformance-machine-code.md).
exec net
