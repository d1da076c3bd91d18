"""`cosched top`: a live terminal dashboard, a client of the control API like any other."""
