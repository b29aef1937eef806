"""What can be wrong with a physical device."""


class NoDeviceError(Exception):
    """There is no such device, or this domain may not use it."""
