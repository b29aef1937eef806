"""Suite `blkif-backend`: a block backend judged by a frontend that is written against the bare ring."""
