"""`from safelight.compat import logging`: the verbosity switches of diffusers' and transformers' `logging`."""

import logging as python_logging
from typing import Any

from safelight.compat.notes import CRITICAL, DEBUG, ERROR, INFO, WARNING, logger

__all__ = ["CRITICAL", "DEBUG", "ERROR", "INFO", "WARNING"]


def get_logger(name: str | None = None) -> python_logging.Logger:
    """Give the logger of that name, or compat's own."""
    return python_logging.getLogger(name) if name else logger


def get_verbosity() -> int:
    """Give the level from which on compat speaks."""
    return logger.getEffectiveLevel()


def set_verbosity(level: int) -> None:
    """Let compat speak from this level on."""
    logger.setLevel(level)


def set_verbosity_debug() -> None:
    """Say everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Say more than usual."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Say what may surprise."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Say what went wrong."""
    set_verbosity(ERROR)


def disable_progress_bar(*_: Any) -> None:
    """Do nothing: loading shows no bar. For drawing, see `pipe.set_progress_bar_config(disable=True)`."""


def enable_progress_bar(*_: Any) -> None:
    """Do nothing: loading shows no bar."""
