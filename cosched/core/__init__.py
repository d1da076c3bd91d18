"""The pure core: events in, commands out. No socket, clock, thread, random number or log."""
