"""The command line, and in `server` the page: both made from the same annotations as the tasks (pipeline/fields.py)."""
