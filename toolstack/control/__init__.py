"""Steering a running host from another process: `paravirt run --control PATH`, and then `paravirt list`, `console`, ….

    paravirt list ── Unix socket ── endpoint (outside, trio) ── a line of the serial card ── server (dom0) ── verbs
       client.py      protocol.py    endpoint.py                 toolstack.outside            server.py        verbs.py

What a verb does is done by the toolstack in dom0, and the way there is a device, as for everything else that comes from
outside.  While nobody says anything, nothing of it is to be seen in a trace.
"""
