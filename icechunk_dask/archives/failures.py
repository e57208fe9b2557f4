"""What is wrong with a file, in words.

A damaged file is told apart from too little memory, and from a mistake of this library.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from icechunk import IcechunkError

__all__ = ["Unstorable", "failure_of"]

_log = logging.getLogger(__name__)

#: What Python raises for mistakes in code. Files cause other kinds of errors.
_MISTAKES: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    TypeError,
)
_OWN: Final = Path(__file__).parents[1]
_CORE: Final = _OWN.with_name("icechunk")


@dataclass
class Unstorable:
    """What cannot be stored of a file, and how to leave it out.

    Attributes
    ----------
    reasons : list of str
    variables, attributes : list of str
        What to name in ``drop_variables`` and in ``drop_attributes``.
    """

    reasons: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)

    def variable(self, name: str, reason: object) -> None:
        """Note a variable that cannot be stored."""
        self.reasons.append(f"its variable {name!r} cannot be stored: {reason}")
        self.variables.append(name)

    def attribute(self, what: str, path: str, name: str, reason: str) -> None:
        """Note an attribute that cannot be stored.

        Parameters
        ----------
        what : str
            The variable or group that has it: ``"variable 'v'"`` or ``"group '/g'"``.
        path : str
            Of that.
        name, reason : str
        """
        self.reasons.append(f"its {what} cannot be stored: its attribute {name!r} {reason}")
        self.attributes.append(f"{path}:{name}")

    def check(self) -> None:
        """Raise an error if anything was noted, with advice that covers all of it.

        Raises
        ------
        ValueError
        """
        if not self.reasons:
            return
        ways = [
            f"{argument}={names!r}"
            for argument, names in (
                ("drop_variables", self.variables),
                ("drop_attributes", self.attributes),
            )
            if names
        ]
        what = "it" if len(self.reasons) == 1 else "these"
        raise ValueError(f"{'; '.join(self.reasons)}; leave {what} out with {' and '.join(ways)}")


def failure_of(exc: Exception) -> str:
    """Return in words why a file could not be scanned.

    Parameters
    ----------
    exc : Exception
        As it was caught.
    """
    reason = f"{type(exc).__name__}: {exc or 'no reason is given'}"
    if isinstance(exc, MemoryError):
        return (
            f"{reason}; there was too little memory to read it, which says nothing about the "
            "file: scan fewer files at a time (fewer threads of each worker), or leave out what "
            "is large with drop_variables"
        )
    if isinstance(exc, _MISTAKES) and not isinstance(exc, IcechunkError):
        last = deque(traceback.walk_tb(exc.__traceback__), 1)
        path = Path(last[0][0].f_code.co_filename) if last else Path()
        if path.is_relative_to(_OWN) or path.is_relative_to(_CORE):
            _log.error("a file could not be scanned", exc_info=exc)
            return (
                f"{reason}, at line {last[0][1]} of {path.name}; this is a mistake of this "
                "library rather than damage of the file: please report it, with the file if "
                "possible"
            )
    return reason
