"""What compat says aloud, in place of diffusers' and transformers' loggers."""

import logging as python_logging
from functools import cache

logger = python_logging.getLogger("safelight.compat")

CRITICAL, ERROR, WARNING, INFO, DEBUG = (
    python_logging.CRITICAL,
    python_logging.ERROR,
    python_logging.WARNING,
    python_logging.INFO,
    python_logging.DEBUG,
)


@cache
def explain(text: str) -> None:
    """Log a sentence once in a run."""
    logger.warning(text)
