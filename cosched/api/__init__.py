"""The control API: its messages, its clients, and who may use it."""
