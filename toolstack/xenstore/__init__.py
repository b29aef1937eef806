"""The store seen from outside of the host: sockets for Xen's own clients, and a client of our own.

sockets     clients on a Unix socket, moved by one epoll object
service     `paravirt xenstored`: the store alone, as a process
client      a small blocking client
display     how `xenstore-ls` and its like show nodes
"""
