"""Suite `netif-frontend`: a network frontend judged by a backend that is written against the bare rings."""
