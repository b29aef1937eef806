"""Suite `netif-backend`: a network backend judged by a frontend that is written against the bare rings.

The guest has two interfaces with the same backend, on one bridge. What one sends comes to the other, and so both ways
can be looked at from outside.
"""
