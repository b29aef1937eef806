"""A recorded trace in the formats of others: text, JSON lines, Xen's own binary, Perfetto.

Each module turns the one stream of records into one format; `timeline` is what they know together: which processor a
record belongs to.
"""
