"""Vchan (io/libxenvchan.h): a stream of bytes each way between two guests, with no backend between them.

channel = await listen(kernel, 2, "data/vchan/chat")                         # in domain 1, the server
channel = await connect(kernel, 1, "/local/domain/1/data/vchan/chat")        # in domain 2, the client
await channel.write(b"hello")
data = await channel.read()
"""

from guest_kernel.vchan.channel import Vchan, connect, listen
from guest_kernel.vchan.ring import VchanError

__all__ = ["Vchan", "VchanError", "connect", "listen"]
