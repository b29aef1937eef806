"""How the store refuses a request."""


class StoreError(Exception):
    """A request that fails: `name` is the errno's name, one of io/xs_wire.h `xsd_errors`, as bytes with its NUL."""

    def __init__(self, name: bytes) -> None:
        super().__init__(name)
        self.name = name


EINVAL = b"EINVAL\0"
EACCES = b"EACCES\0"
EEXIST = b"EEXIST\0"
ENOENT = b"ENOENT\0"
ENOMEM = b"ENOMEM\0"
ENOSPC = b"ENOSPC\0"
ENOSYS = b"ENOSYS\0"
EBUSY = b"EBUSY\0"
EAGAIN = b"EAGAIN\0"
EIO = b"EIO\0"
E2BIG = b"E2BIG\0"
EPERM = b"EPERM\0"
