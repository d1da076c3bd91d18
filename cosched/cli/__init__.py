"""The command line: one file per command, registered in `main.py` and imported when it is called."""
