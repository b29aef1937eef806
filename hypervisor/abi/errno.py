"""Error numbers (errno.h): Xen's own, part of the interface and not the host's; hypercalls return them negated.

The header makes ``XEN_EPERM`` of ``XEN_ERRNO(EPERM, 1)``; here the names carry no prefix. The numbers are those of
Linux, but a guest of another system must translate them.
"""

from hypervisor.abi._names import names

# errno.h: in the header's order.
EPERM = 1
ENOENT = 2
ESRCH = 3
EIO = 5
ENXIO = 6
E2BIG = 7
ENOEXEC = 8
EBADF = 9
ECHILD = 10
EAGAIN = 11
EWOULDBLOCK = 11
ENOMEM = 12
EACCES = 13
EFAULT = 14
EBUSY = 16
EEXIST = 17
EXDEV = 18
ENODEV = 19
ENOTDIR = 20
EISDIR = 21
EINVAL = 22
ENFILE = 23
EMFILE = 24
ENOSPC = 28
EROFS = 30
EMLINK = 31
EDOM = 33
ERANGE = 34
EDEADLK = 35
EDEADLOCK = 35
ENAMETOOLONG = 36
ENOLCK = 37
ENOSYS = 38
ENOTEMPTY = 39
ENODATA = 61
ETIME = 62
EBADMSG = 74
EOVERFLOW = 75
EILSEQ = 84
ENOTSOCK = 88
EMSGSIZE = 90
EOPNOTSUPP = 95
EADDRINUSE = 98
EADDRNOTAVAIL = 99
ENOBUFS = 105
EISCONN = 106
ENOTCONN = 107
ETIMEDOUT = 110
ECONNREFUSED = 111

NAMES = names(globals(), r"E(?!WOULDBLOCK|DEADLOCK)\w+")
"""Names by (positive) number; EWOULDBLOCK is EAGAIN, EDEADLOCK is EDEADLK."""


def name(errno: int) -> str:
    """Return the name of an error number, whatever its sign: ``name(-22) == "EINVAL"``; "E<n>" for an unknown one."""
    return NAMES.get(abs(errno), f"E{abs(errno)}")
