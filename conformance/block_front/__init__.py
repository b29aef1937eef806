"""Suite `blkif-frontend`: a block frontend judged by a backend that is written against the bare ring."""
