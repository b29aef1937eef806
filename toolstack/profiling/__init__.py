"""Where guests spend virtual time: `profile` adds it up from a trace's records, the other modules show it."""
