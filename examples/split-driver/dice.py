"""The protocol of a dice device: what both ends agree on."""

from struct import Struct

REQUEST = Struct("<HHI")
"""id (the answer has the same), sides of the die, unused"""
RESPONSE = Struct("<HHI")
"""id, status, roll"""
ENTRY = max(REQUEST.size, RESPONSE.size)
OKAY, BAD_SIDES = 0, 1
