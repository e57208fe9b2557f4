"""Logs of the library: requests to the storage, retries, and commits.

They go to loggers of the standard library, named after the modules below ``icechunk``. A program
configures them as it does others. The functions here use the terms of the official client.
No secret is logged: there are keys of objects, but no headers, credentials or data.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

from icechunk.errors import ErrorKind, InvalidInputError

__all__ = ["initialize_logs", "set_logs_filter", "shutdown_telemetry"]

ENVIRONMENT: Final = "ICECHUNK_LOG"
TO_STDOUT: Final = "ICECHUNK_LOG_TO_STDOUT"
#: The levels of the official client; Python has nothing finer than debug.
_LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
_ROOT: Final = logging.getLogger("icechunk")
#: The loggers that the filter in force gave a level.
_set_by_filter: list[logging.Logger] = []
_handler: logging.Handler | None = None


def initialize_logs() -> None:
    """Show logs as the environment variable ICECHUNK_LOG says.

    This is called on import, and by whoever changed the variable. Without the variable, nothing
    is set up: the program decides. Logs go to standard error, or to standard output if
    ICECHUNK_LOG_TO_STDOUT is set. A filter that cannot be parsed is reported there, and ignored.

    Examples
    --------
    >>> icechunk.initialize_logs()  # doctest: +SKIP
    """
    directive = os.environ.get(ENVIRONMENT)
    if directive:
        try:
            set_logs_filter(directive)
        except InvalidInputError as error:
            print(f"{ENVIRONMENT} is ignored: {error}", file=sys.stderr)


def set_logs_filter(log_filter_directive: str | None) -> None:
    """Show logs from a level on, for all modules or for some.

    Parameters
    ----------
    log_filter_directive : str or None
        A level (``off``, ``error``, ``warn``, ``info``, ``debug``, ``trace``), or several
        parts separated by commas, each a level or ``module=level``, such as
        ``warn,icechunk.storage=debug``. ``::`` in names is read as a dot. None: the value of
        the environment variable ICECHUNK_LOG; without it, all levels are unset.

    Raises
    ------
    InvalidInputError
        If there is no such level. Nothing is changed then.

    Examples
    --------
    >>> icechunk.set_logs_filter("debug")  # doctest: +SKIP
    """
    directive = os.environ.get(ENVIRONMENT, "") if log_filter_directive is None else None
    levels = _parse(directive if directive is not None else str(log_filter_directive))
    while _set_by_filter:
        _set_by_filter.pop().setLevel(logging.NOTSET)
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        _set_by_filter.append(logger)
    if levels:
        _show()


def shutdown_telemetry() -> None:
    """Flush the log handlers. There is no telemetry to stop.

    Examples
    --------
    >>> icechunk.shutdown_telemetry()
    """
    for handler in _ROOT.handlers:
        handler.flush()


def _parse(directive: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in directive.split(","))):
        name, equals, level = part.rpartition("=")
        if level.lower() not in _LEVELS:
            raise InvalidInputError(
                f"log filter {directive!r}: {level!r} is not a level; the levels are "
                f"{', '.join(_LEVELS)}",
                ErrorKind.NOT_ALLOWED,
            )
        name = name.strip().replace("::", ".") if equals else _ROOT.name
        found[name] = _LEVELS[level.lower()]
    return found


def _show() -> None:
    """Add a handler that writes logs to a stream, once."""
    global _handler
    if _handler is None:
        stream = sys.stdout if TO_STDOUT in os.environ else sys.stderr
        _handler = logging.StreamHandler(stream)
        _handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        _ROOT.addHandler(_handler)
        # otherwise a program with handlers of its own would see everything twice
        _ROOT.propagate = False


initialize_logs()
