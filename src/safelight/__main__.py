"""`python -m safelight` is `safelight`."""

from safelight.app.cli import main

main()
