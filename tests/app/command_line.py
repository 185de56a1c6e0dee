"""The command line in the tests' own process: what a user types, and what comes of it.

A process of its own costs each command seconds of imports; those tests that are about the process start one.
"""

import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from unittest.mock import patch

from safelight.app.cli import main


@dataclass
class Ran:
    """The exit status of a command, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments, cwd="."):
    """Type `safelight` and these arguments, in this folder. An exception that the command lets out comes out."""
    out, err = StringIO(), StringIO()
    typed = patch.object(sys, "argv", ["safelight", *map(str, arguments)])
    with chdir(cwd), typed, redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
    return Ran(status, out.getvalue(), err.getvalue())


def told(*arguments, code=0):
    """All that the command writes; it must leave with this exit status."""
    ran = run(*arguments)
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr
