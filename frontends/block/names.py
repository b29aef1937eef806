"""Disk names from virtual device numbers: the encoding of Xen's vbd-interface document."""

_EXTENDED = 1 << 28
_XVD_MAJOR = 202
_SD_MAJORS = {8: 0} | {65 + n: 16 + 16 * n for n in range(7)} | {128 + n: 128 + 16 * n for n in range(8)}
_HD_MAJORS = {3: 0, 22: 2, 33: 4, 34: 6, 56: 8, 57: 10, 88: 12, 89: 14, 90: 16, 91: 18}


def _letters(disk: int) -> str:
    """Return a, b, ... z, aa, ab, ... for 0, 1, ...: bijective base 26."""
    text = ""
    disk += 1
    while disk:
        disk, digit = divmod(disk - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _split(vdev: int) -> tuple[str, int, int]:
    """Return prefix, disk and partition of a virtual device number."""
    if vdev & _EXTENDED:
        return "xvd", (vdev & (_EXTENDED - 1)) >> 8, vdev & 0xFF
    major, minor = vdev >> 8, vdev & 0xFF
    if major == _XVD_MAJOR:
        return "xvd", minor >> 4, minor & 15
    if major in _SD_MAJORS:
        return "sd", _SD_MAJORS[major] + (minor >> 4), minor & 15
    if major in _HD_MAJORS:
        return "hd", _HD_MAJORS[major] + (minor >> 6), minor & 63
    raise ValueError(f"virtual device number {vdev} is in no range that the vbd interface defines")


def disk_name(vdev: int) -> str:
    """Return the guest's name of a virtual device number: 51712 is "xvda", 51713 "xvda1", 268439552 "xvdq".

    Raises ValueError for a number outside of the ranges that are defined (xvd, extended xvd, sd, hd).
    """
    if not 0 <= vdev < 2 * _EXTENDED:
        raise ValueError(f"virtual device number {vdev} is out of range")
    prefix, disk, partition = _split(vdev)
    return f"{prefix}{_letters(disk)}{partition or ''}"
