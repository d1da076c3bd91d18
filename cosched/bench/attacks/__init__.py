"""Attacks on a daemon of one's own, as a stranger would run them: raw sockets, bounded in count and time."""
