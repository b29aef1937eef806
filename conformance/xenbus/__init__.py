"""Suites `xenbus-frontend` and `xenbus-backend`: a driver of any class, judged by how it behaves on the bus.

What goes over its rings does not matter here, and is not known: `classes` says what nodes the two ends of a class
exchange, `ends` plays the other end with nothing but these, `desk` is the toolstack's hand in dom0, `eye` sees what the
store sees, `books` counts what the driver holds.
"""
