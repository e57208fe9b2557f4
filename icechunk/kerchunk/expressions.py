"""A small language: the expressions in templates of kerchunk references.

References come from anywhere, so nothing in them may run for long, grow large, or reach into
Python. kerchunk's documentation and files need names, numbers, text, arithmetic, formatted
numbers, and calls of templates. The syntax is that of Jinja, with which kerchunk itself
evaluates them. Each step does little, and there are no loops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["ExpressionError", "Value", "compile_template"]

Value = int | float | str
Scope = Mapping[str, "Value | Callable[..., str]"]
Evaluate = Callable[[Scope], Value]

#: Limits: characters of a template; of a result; nesting of expressions.
MAX_TEMPLATE: Final = 10_000
MAX_TEXT: Final = 100_000
MAX_DEPTH: Final = 50
MAX_TOKENS: Final = 200
#: Positions in files have 64 bits.
MAX_NUMBER: Final = 1 << 64

_PARTS: Final = re.compile(r"\{\{(?![-+])(.*?)\}\}", re.DOTALL)
_STATEMENT: Final = re.compile(r"\{[%#]|\{\{")
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<text>'[^'\\]*'|\"[^\"\\]*\")|(?P<sign>//|[-+*/%~|(),=.]))"
)
_PERCENT: Final = re.compile(r"%([-+ 0#]*)([0-9]*)(?:\.([0-9]+))?([diouxXeEfFgGs%])")
_BRACES: Final = re.compile(r"\{([0-9]*)(?::([^{}]*))?\}")
_SPEC: Final = re.compile(r"[<>=^]?[-+ ]?0?([0-9]*)(?:\.([0-9]+))?[bdoxXeEfFgGs]?")
_MAX_WIDTH: Final = 100


class ExpressionError(Exception):
    """An expression that cannot be parsed or evaluated."""


class _Token(NamedTuple):
    kind: str
    text: str


def compile_template(template: str) -> Callable[[Scope], str]:
    """Return a function that renders a template with values for its names.

    Parameters
    ----------
    template : str
        Text with expressions between ``{{`` and ``}}``.

    Raises
    ------
    ExpressionError
        If it cannot be parsed. The function raises it if evaluation fails.
    """
    if len(template) > MAX_TEMPLATE:
        raise ExpressionError(f"a template of more than {MAX_TEMPLATE} characters")
    parts: list[str | Evaluate] = []
    end = 0
    for found in _PARTS.finditer(template):
        parts += [_plain(template[end : found.start()]), _Parser(found[1]).whole()]
        end = found.end()
    parts.append(_plain(template[end:]))

    def render(scope: Scope) -> str:
        texts = [part if isinstance(part, str) else _text(part(scope)) for part in parts]
        return _short("".join(texts))

    return render


def _plain(text: str) -> str:
    if _STATEMENT.search(text):
        raise ExpressionError("only expressions between {{ and }} are supported, not statements")
    return text


class _Parser:
    """A parser of one expression, from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens: list[_Token] = []
        text, at = text.strip(), 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ExpressionError(f"{text[at : at + 20]!r} is not understood")
            self._tokens.append(_Token(str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
            if len(self._tokens) > MAX_TOKENS:
                raise ExpressionError(f"an expression of more than {MAX_TOKENS} words")
        self._at = 0
        self._depth = 0

    def whole(self) -> Evaluate:
        """Read the expression to its end."""
        result = self._sum()
        if self._at < len(self._tokens):
            raise ExpressionError(f"{self._tokens[self._at].text!r} is not understood there")
        return result

    def _next(self, *signs: str) -> str | None:
        """Take the next token if it is one of these signs."""
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "sign" and text in signs:
                self._at += 1
                return text
        return None

    def _need(self, sign: str) -> None:
        if self._next(sign) is None:
            raise ExpressionError(f"{sign!r} is missing")

    def _name(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at].kind == "name":
            self._at += 1
            return self._tokens[self._at - 1].text
        raise ExpressionError("a name is missing")

    def _sum(self) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"expressions nest deeper than {MAX_DEPTH}")
        result = self._product()
        while (sign := self._next("+", "-", "~")) is not None:
            result = _binary(sign, result, self._product())
        self._depth -= 1
        return result

    def _product(self) -> Evaluate:
        result = self._signed()
        while (sign := self._next("*", "/", "//", "%")) is not None:
            result = _binary(sign, result, self._signed())
        return result

    def _signed(self) -> Evaluate:
        sign = None
        while (found := self._next("-", "+")) is not None:
            sign = "-" if (found == "-") != (sign == "-") else "+"
        result = self._formatted()
        return result if sign is None else _binary(sign, lambda scope: 0, result)

    def _formatted(self) -> Evaluate:
        result = self._atom()
        while (sign := self._next("|", ".")) is not None:
            name = self._name()
            if (sign, name) == ("|", "int"):
                result = _to_int(result)
            elif name == "format":
                self._need("(")
                make = _percent if sign == "|" else _braces
                result = _format(make, result, self._arguments())
            else:
                raise ExpressionError(f"{sign}{name} is not understood")
        return result

    def _arguments(self) -> list[Evaluate]:
        found: list[Evaluate] = []
        while self._next(")") is None:
            if found:
                self._need(",")
            found.append(self._sum())
        return found

    def _atom(self) -> Evaluate:
        if self._next("(") is not None:
            items = [self._sum()]
            while self._next(",") is not None:
                items.append(self._sum())
            self._need(")")
            return items[0] if len(items) == 1 else _tuple(items)
        if self._at == len(self._tokens):
            raise ExpressionError("it ends too early")
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            if len(text) > 25:
                raise ExpressionError("a number of more than 25 digits")
            value: Value = float(text) if "." in text else int(text)
            return lambda scope: value
        if kind == "text":
            return lambda scope: text[1:-1]
        if kind == "name":
            return self._call(text) if self._next("(") is not None else _lookup(text)
        raise ExpressionError(f"{text!r} is not understood there")

    def _call(self, name: str) -> Evaluate:
        given: dict[str, Evaluate] = {}
        while self._next(")") is None:
            if given:
                self._need(",")
            argument = self._name()
            self._need("=")
            given[argument] = self._sum()

        def call(scope: Scope) -> Value:
            function = _found(scope, name)
            if not callable(function):
                raise ExpressionError(f"{name!r} takes no arguments")
            result: str = function({key: value(scope) for key, value in given.items()})
            return result

        return call


# -- evaluating ----------------------------------------------------------------------
def _found(scope: Scope, name: str) -> Any:
    try:
        return scope[name]
    except KeyError:
        raise ExpressionError(f"{name!r} is undefined") from None


def _lookup(name: str) -> Evaluate:
    def look(scope: Scope) -> Value:
        value: Value = _found(scope, name)
        if not isinstance(value, int | float | str):
            problem = f"needs arguments: {name}(...)" if callable(value) else "is not a value"
            raise ExpressionError(f"{name!r} {problem}")
        return value

    return look


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        raise ExpressionError("several values where one is expected")
    return _short(str(value))


def _short(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ExpressionError(f"a text of more than {MAX_TEXT} characters")
    return text


def _bounded(value: Value) -> Value:
    if isinstance(value, str):
        return _short(value)
    if not -MAX_NUMBER < value < MAX_NUMBER:
        raise ExpressionError("a number of more than 64 bits")
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        _bounded(value)
        return value
    raise ExpressionError(f"{str(value)[:50]!r} is not a number")


def _binary(sign: str, left: Evaluate, right: Evaluate) -> Evaluate:
    def evaluate(scope: Scope) -> Value:
        one, other = left(scope), right(scope)
        if sign == "~":
            return _short(_text(one) + _text(other))
        if sign == "%" and isinstance(one, str):
            return _percent(one, other if isinstance(other, tuple) else (other,))
        if sign == "+" and isinstance(one, str) and isinstance(other, str):
            return _short(one + other)
        return _bounded(_OPERATIONS[sign](_number(one), _number(other)))

    return evaluate


def _divided(one: Any, other: Any, divide: Callable[[Any, Any], Any]) -> Any:
    if not other:
        raise ExpressionError("division by zero")
    return divide(one, other)


_OPERATIONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: _divided(a, b, lambda a, b: a / b),
    "//": lambda a, b: _divided(a, b, lambda a, b: a // b),
    "%": lambda a, b: _divided(a, b, lambda a, b: a % b),
}


def _tuple(items: Sequence[Evaluate]) -> Evaluate:
    # only usable after %; everything else refuses it
    return lambda scope: tuple(item(scope) for item in items)  # type: ignore[return-value]


def _to_int(value: Evaluate) -> Evaluate:
    def convert(scope: Scope) -> Value:
        found = _single(value(scope))
        if isinstance(found, str) and not re.fullmatch(r"\s*[-+]?[0-9]{1,25}\s*", found):
            raise ExpressionError(f"{found[:50]!r} is not a whole number")
        return _bounded(int(found))

    return convert


def _format(
    make: Callable[[str, Sequence[Value]], str], pattern: Evaluate, arguments: list[Evaluate]
) -> Evaluate:
    def apply(scope: Scope) -> Value:
        text = pattern(scope)
        if not isinstance(text, str):
            raise ExpressionError("only a text has formats")
        return make(text, [argument(scope) for argument in arguments])

    return apply


def _percent(pattern: str, values: Sequence[Value]) -> str:
    """Format as ``pattern % values`` does."""
    left = list(values)

    def one(found: re.Match[str]) -> str:
        _, width, precision, kind = found.groups()
        if kind == "%":
            return "%"
        _check_width(width, precision)
        if not left:
            raise ExpressionError("a format has no value")
        value = left.pop(0)
        try:
            return found[0] % (_text(value) if kind == "s" else _number(value))
        except (TypeError, ValueError, OverflowError) as exc:
            raise ExpressionError(str(exc)) from None

    result = _PERCENT.sub(one, pattern)
    if left:
        raise ExpressionError("a value has no format")
    return _short(result)


def _braces(pattern: str, values: Sequence[Value]) -> str:
    """Format as ``pattern.format(*values)`` does, without names and attributes."""
    count = 0

    def one(found: re.Match[str]) -> str:
        nonlocal count
        position = int(found[1]) if found[1] else count
        count += 1
        spec = _SPEC.fullmatch(found[2] or "")
        if spec is None:
            raise ExpressionError(f"the format {found[2]!r} is not understood")
        _check_width(*spec.groups())
        if position >= len(values):
            raise ExpressionError("a format has no value")
        try:
            return format(_single(values[position]), found[2] or "")
        except (TypeError, ValueError, OverflowError) as exc:
            raise ExpressionError(str(exc)) from None

    if not {"{", "}"}.isdisjoint(_BRACES.sub("", pattern)):
        raise ExpressionError("only {} with a position and a format is understood")
    return _short(_BRACES.sub(one, pattern))


def _single(value: Value) -> Value:
    return _text(value) if isinstance(value, tuple) else value


def _check_width(*sizes: str | None) -> None:
    for size in sizes:
        if size and (len(size) > 3 or int(size) > _MAX_WIDTH):
            raise ExpressionError(f"a format of more than {_MAX_WIDTH} characters")
