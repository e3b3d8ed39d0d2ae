"""A client of the service, in Python: see sagan.client. The command is in the package cli."""
