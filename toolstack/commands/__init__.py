"""The verbs of the command `paravirt`, one module each."""
