"""The command line (and, in a later issue, the server and the page), all from one request schema: see pipeline/fields.py."""
