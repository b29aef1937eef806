"""The hardware: frames, clock, timers, interrupt lines, disks, NICs, serial console."""
