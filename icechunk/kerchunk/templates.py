"""Templates and generators of version 1 of the kerchunk specification."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from icechunk.kerchunk.expressions import ExpressionError, Value, compile_template
from icechunk.kerchunk.tables import refuse

__all__ = ["Templates"]

_PLAIN: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
#: How many references all generators together may produce.
MAX_GENERATED: Final = 10_000_000

Render = Callable[[Mapping[str, Any]], str]


class Templates:
    """Templates of version 1: plain texts, and templates called with arguments."""

    def __init__(self, templates: Any) -> None:
        if not isinstance(templates, Mapping) or not all(
            isinstance(name, str) and isinstance(text, str) for name, text in templates.items()
        ):
            refuse("templates", "is not a dictionary of texts")
        self._plain: dict[str, str] = {
            name: text for name, text in templates.items() if "{{" not in text
        }
        self._calls = {name: text for name, text in templates.items() if "{{" in text}
        self._names: dict[str, Any] | None = None

    def expand(self, key: str, url: str) -> str:
        """Return a URL with its expressions replaced."""
        plain = self._plain

        def replaced(match: re.Match[str]) -> str:
            return plain[match[1]]

        try:
            expanded = _PLAIN.sub(replaced, url)
        except KeyError:
            expanded = "{{"
        # what remains is more than a name, or no expression at all
        return self._compile(key, url)({}) if "{{" in expanded else expanded

    def _compile(self, key: str, text: str) -> Render:
        if self._names is None:
            self._names = dict(self._plain)
            for name, call in self._calls.items():
                try:
                    self._names[name] = compile_template(call)
                except ExpressionError as exc:
                    refuse("templates", f"{name!r}: {exc}")
        names = self._names
        try:
            template = compile_template(text)
        except ExpressionError as exc:
            refuse(key, f"the template {text!r} cannot be read: {exc}")

        def render(values: Mapping[str, Value]) -> str:
            try:
                return template({**names, **values} if values else names)
            except ExpressionError as exc:
                refuse(key, f"the template {text!r} fails: {exc}")

        return render

    def generate(self, entries: Any) -> dict[str, list[Any]]:
        """Return the references that generator entries produce."""
        if not isinstance(entries, list):
            refuse("gen", "is not a list")
        found: dict[str, list[Any]] = {}
        self._left = MAX_GENERATED
        for number, entry in enumerate(entries):
            self._generate(f"gen[{number}]", entry, found)
        return found

    def _generate(self, name: str, entry: Any, found: dict[str, list[Any]]) -> None:
        fields = ("key", "url", "offset", "length")
        if not isinstance(entry, Mapping) or not {"key", "url", "dimensions"} <= entry.keys():
            refuse(name, "needs 'key', 'url' and 'dimensions'")
        if ("offset" in entry) != ("length" in entry):
            refuse(name, "has one of 'offset' and 'length'; it needs both, or neither")
        dimensions = entry["dimensions"]
        if not isinstance(dimensions, Mapping):
            refuse(name, "'dimensions' is not a dictionary")
        values = [_values(name, dim, given) for dim, given in dimensions.items()]
        taken = dimensions.keys() & {*self._plain, *self._calls}
        if taken:
            refuse(name, f"{min(taken)!r} is a dimension and a template")
        # before anything is done, or a range expanded: either may be of any size
        count = math.prod(map(_size, values))
        if count > self._left:
            refuse(
                name,
                f"stands for {count} references; generators may for {MAX_GENERATED} at most",
            )
        self._left -= count
        if not count:
            return
        make = {f: self._compile(name, str(entry[f])) for f in fields if f in entry}
        for product in itertools.product(*values):
            chosen = dict(zip(dimensions, product, strict=True))
            key = make["key"](chosen)
            found[key] = [make["url"](chosen)]
            if "offset" in make:
                found[key] += [
                    _whole(f"{name} {key}", make[f](chosen)) for f in ("offset", "length")
                ]


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"\s*[-+]?[0-9]{1,25}\s*", text):
        refuse(name, f"{text[:50]!r} is not a whole number of bytes")
    return int(text)


def _size(values: Sequence[Any]) -> int:
    """Return the length, even of a range too long for `len`."""
    if isinstance(values, range):
        return max(0, -((values.start - values.stop) // values.step))
    return len(values)


def _values(name: str, dimension: str, given: Any) -> Sequence[Any]:
    if isinstance(given, list):
        return given
    if isinstance(given, Mapping) and "stop" in given:
        try:
            return range(given.get("start", 0), given["stop"], given.get("step", 1))
        except (TypeError, ValueError) as exc:
            refuse(name, f"dimension {dimension!r}: {exc}")
    refuse(name, f"dimension {dimension!r} is neither a list nor a range with 'stop'")
