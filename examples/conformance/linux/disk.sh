# The job of a ramdisk with which a block frontend is judged (docs/conformance-machine-code.md).
exec disk
