"""Memory management: frames and their counts, page types, guest page tables, reservations."""
