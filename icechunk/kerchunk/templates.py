"""Templates and generators of version 1 of the kerchunk specification."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from icechunk.kerchunk.tables import refuse

__all__ = ["Templates"]

_EXPRESSION: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")


class Templates:
    """Templates of version 1. Plain ones are replaced here, others by jinja2."""

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
            return _EXPRESSION.sub(replaced, url)
        except KeyError:
            rendered: str = self._compile(key, url)({})
            return rendered

    def _compile(self, key: str, text: str) -> Callable[[Mapping[str, Any]], str]:
        try:
            from jinja2 import StrictUndefined, TemplateError
            from jinja2.sandbox import SandboxedEnvironment
        except ImportError:
            refuse(key, f"the template {text!r} needs jinja2: pip install 'icechunk[virtual]'")
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        if self._names is None:
            self._names = dict(self._plain)
            for name, call in self._calls.items():
                try:
                    self._names[name] = environment.from_string(call).render
                except TemplateError as exc:
                    refuse("templates", f"{name!r}: {exc}")
        names = self._names
        try:
            template = environment.from_string(text)
        except TemplateError as exc:
            refuse(key, f"the template {text!r} cannot be read: {exc}")

        def render(values: Mapping[str, Any]) -> str:
            try:
                return str(template.render(**names, **values))
            except Exception as exc:  # whatever an expression may do
                refuse(key, f"the template {text!r} fails: {exc}")

        return render

    def generate(self, entries: Any) -> dict[str, list[Any]]:
        """Return the references that generator entries stand for."""
        if not isinstance(entries, list):
            refuse("gen", "is not a list")
        found: dict[str, list[Any]] = {}
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
        make = {f: self._compile(name, str(entry[f])) for f in fields if f in entry}
        for product in itertools.product(*values):
            chosen = dict(zip(dimensions, product, strict=True))
            key = make["key"](chosen)
            found[key] = [make["url"](chosen)]
            if "offset" in make:
                try:
                    found[key] += [int(make["offset"](chosen)), int(make["length"](chosen))]
                except ValueError as exc:
                    refuse(f"{name} {key}", str(exc))


def _values(name: str, dimension: str, given: Any) -> Sequence[Any]:
    if isinstance(given, list):
        return given
    if isinstance(given, Mapping) and "stop" in given:
        try:
            return range(given.get("start", 0), given["stop"], given.get("step", 1))
        except (TypeError, ValueError) as exc:
            refuse(name, f"dimension {dimension!r}: {exc}")
    refuse(name, f"dimension {dimension!r} is neither a list nor a range with 'stop'")
