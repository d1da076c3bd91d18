"""The daemon: one engine in one event loop, with its sockets, files and children."""
