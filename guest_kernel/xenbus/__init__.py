"""Guest side of xenstore: wire format, client, the xenbus state machine and the bus of split devices."""
