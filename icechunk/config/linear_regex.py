"""Regular expressions written by strangers, matched in linear time.

Patterns come with the stored configuration of a repository, and a short one can make
Python's own engine run for ever. Here all ways to match are followed at the same time
(Thompson, "Regular Expression Search Algorithm", CACM 1968), so the time is proportional to
the length of the pattern times that of the subject. Python's parser says what a pattern means.
Look-around and back-references cannot be matched this way and are not supported, as in
the engine of the official client.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

#: Longer patterns are not supported, nor those that counted repetitions make longer.
MAX_PATTERN: Final = 1000
MAX_WORK: Final = 4000

# undocumented, and the same in all versions from 3.11 on
_parser: Final = importlib.import_module("re._parser")

_Test: TypeAlias = Callable[[str], bool]

_CATEGORIES: Final[dict[str, _Test]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda c: c.isalnum() or c == "_",
}


class _Step(NamedTuple):
    """One step of a program: take a character, check a position, or go on elsewhere.

    Attributes
    ----------
    test : callable, str or None
        A test of the next character; the name of a position; or None to go on without either.
    to : tuple of int
        The steps after it.
    """

    test: _Test | str | None
    to: tuple[int, ...]


class _UnsupportedError(Exception):
    pass


class LinearRegex:
    """A compiled pattern. Made by `compile_regex`."""

    def __init__(self, pattern: str) -> None:
        parsed = _parser.parse(pattern)
        self._steps: list[_Step] = []
        self._left = MAX_WORK
        self._start = self._sequence(parsed, parsed.state.flags, self._add(None))

    # -- compiling, from the end to the beginning ------------------------------------
    def _add(self, test: _Test | str | None, *to: int) -> int:
        self._spend()
        self._steps.append(_Step(test, to))
        return len(self._steps) - 1

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _UnsupportedError

    def _sequence(self, items: Any, flags: int, then: int) -> int:
        for operation, argument in reversed(list(items)):
            then = self._one(str(operation), argument, flags, then)
        return then

    def _one(self, operation: str, argument: Any, flags: int, then: int) -> int:
        self._spend()
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inner = argument
            return self._repeat(low, high, inner, flags, then)
        if operation == "BRANCH":
            return self._add(None, *[self._sequence(way, flags, then) for way in argument[1]])
        if operation == "SUBPATTERN":
            _, added, removed, inner = argument
            return self._sequence(inner, (flags | added) & ~removed, then)
        if operation == "AT":
            name = str(argument)
            if name.endswith("BOUNDARY"):
                return self._add("ASCII_" * bool(flags & re.ASCII) + name, then)
            return self._add("LINE_" * bool(flags & re.MULTILINE) + name, then)
        if operation == "ANY":
            every = bool(flags & re.DOTALL)
            return self._add(lambda c: every or c != "\n", then)
        if operation == "IN":
            return self._add(_any_of(argument, flags), then)
        if operation in ("LITERAL", "NOT_LITERAL"):
            return self._add(_any_of([(operation, argument)], flags), then)
        raise _UnsupportedError

    def _repeat(self, low: int, high: int, inner: Any, flags: int, then: int) -> int:
        if high == _parser.MAXREPEAT:
            loop = self._add(None)
            self._steps[loop] = _Step(None, (self._sequence(inner, flags, loop), then))
            then = loop
        else:
            for _ in range(high - low):
                then = self._add(None, self._sequence(inner, flags, then), then)
        for _ in range(low):
            # a step of its own, so that repeating an empty match is bounded too
            then = self._add(None, self._sequence(inner, flags, then))
        return then

    # -- matching --------------------------------------------------------------------
    def matches(self, subject: str) -> bool:
        """Whether the pattern matches anywhere in the subject."""
        waiting: set[int] = set()
        for position in range(len(subject) + 1):
            reached = self._reach({*waiting, self._start}, subject, position)
            if any(not self._steps[i].to for i in reached):
                return True
            if position < len(subject):
                waiting = set()
                for i in reached:
                    test, to = self._steps[i]
                    if callable(test) and test(subject[position]):
                        waiting.update(to)
        return False

    def _reach(self, steps: Iterable[int], subject: str, position: int) -> set[int]:
        """Return the steps that can be reached without taking a character."""
        found: set[int] = set()
        todo = list(steps)
        while todo:
            i = todo.pop()
            if i in found:
                continue
            found.add(i)
            test, to = self._steps[i]
            if test is None or (isinstance(test, str) and _holds(test, subject, position)):
                todo += to
        return found


def _any_of(items: Any, flags: int) -> _Test:
    """Return the test of a set of characters."""
    tests: list[_Test] = []
    negated = False
    for operation, argument in items:
        name = str(operation)
        if name == "NEGATE":
            negated = True
        elif name in ("LITERAL", "NOT_LITERAL"):
            tests.append(_between(argument, argument))
            negated = negated or name == "NOT_LITERAL"
        elif name == "RANGE":
            tests.append(_between(*argument))
        else:
            tests.append(_category(str(argument).removeprefix("CATEGORY_"), flags))
    if flags & re.IGNORECASE:
        return lambda c: (
            negated
            != any(test(v) for v in {c, c.lower(), c.upper()} if len(v) == 1 for test in tests)
        )
    return lambda c: negated != any(test(c) for test in tests)


def _between(low: int, high: int) -> _Test:
    return lambda c: low <= ord(c) <= high


def _category(name: str, flags: int) -> _Test:
    negated = name.startswith("NOT_")
    inside = _CATEGORIES[name.removeprefix("NOT_")]
    ascii_only = bool(flags & re.ASCII)
    return lambda c: negated != (inside(c) and (c.isascii() or not ascii_only))


def _holds(position_name: str, subject: str, position: int) -> bool:
    before = subject[position - 1] if position else None
    after = subject[position] if position < len(subject) else None
    if position_name.endswith("BOUNDARY"):
        word = _category("WORD", re.ASCII if position_name.startswith("ASCII") else 0)
        inside = (before is not None and word(before)) != (after is not None and word(after))
        return inside != ("NON_" in position_name)
    if "BEGINNING" in position_name:
        return before is None or (position_name == "LINE_AT_BEGINNING" and before == "\n")
    if after is None:
        return True
    if position_name == "AT_END":
        return after == "\n" and position == len(subject) - 1
    return position_name == "LINE_AT_END" and after == "\n"


@lru_cache(maxsize=256)
def compile_regex(pattern: str) -> LinearRegex | None:
    """Compile a pattern. Return None if it is malformed, too long, or not supported."""
    if len(pattern) > MAX_PATTERN:
        return None
    try:
        return LinearRegex(pattern)
    except (re.error, OverflowError, RecursionError, _UnsupportedError):
        return None
