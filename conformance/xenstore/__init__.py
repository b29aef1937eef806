"""Suite `xenstore`: a store judged from its socket, as a client of dom0."""
