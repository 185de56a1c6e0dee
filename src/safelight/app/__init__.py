"""The command line, made from the same annotations as the tasks (see pipeline/fields.py)."""
