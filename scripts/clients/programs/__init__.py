"""One program for each client in Python: what it is asked to do, in its own words."""
