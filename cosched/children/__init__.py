"""Child processes: messages behind their length, and solve workers that can be killed at will."""
