"""How a configuration class checks, prints, merges and stores its options.

A configuration class is a dataclass that inherits from `Options` and annotates each of
its fields with the kind of value that it takes, ``Annotated[int | None, unsigned(16)]``;
a field whose default is None may be unset. One declaration serves everything:
assignments are checked, ``str`` shows what is in force, merging overlays
option by option, and dumping and loading speak the stored form (Icechunk spec,
"RepositoryConfig"): a map with every key, None where unset, and unknown keys ignored
when reading.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from textwrap import indent
from typing import Annotated, Any, ClassVar, TypeVar, get_origin, get_type_hints

from icechunk.base.display import Displayed
from icechunk.base.near import meant
from icechunk.base.public_url import public_text, public_url
from icechunk.base.texts import call, labelled, literal
from icechunk.errors import ErrorKind, InvalidInputError

#: A value of the stored form: None, bool, int, str, list or dict of the same.
Stored = Any

OptionsType = TypeVar("OptionsType", bound="Options")


def invalid_option(where: str, expected: str, value: object) -> InvalidInputError:
    """Return the error for a value that an option does not take."""
    # what is no option may be those of something else, with secrets
    shown = "a dict" if isinstance(value, dict) else public_text(repr(value))
    if len(shown) > 80:
        shown = shown[:80] + "..."
    return InvalidInputError(f"{where} must be {expected}, not {shown}", ErrorKind.STORAGE_CONFIG)


@dataclass(frozen=True)
class Kind:
    """What values an option takes, and their stored form.

    Attributes
    ----------
    check : callable
        ``(value, where)`` to the value to keep. Raises InvalidInputError.
    dump : callable
        From a checked value to its stored form.
    load : callable
        ``(stored, where)`` to a checked value. Raises InvalidInputError.
    show : callable, default literal
        A value as a text, without secrets.
    """

    check: Callable[[Any, str], Any]
    dump: Callable[[Any], Stored]
    load: Callable[[Stored, str], Any]
    show: Callable[[Any], str] = literal


def _same(value: Any) -> Any:
    return value


def _plain(check: Callable[[Any, str], Any]) -> Kind:
    return Kind(check, _same, check)


def integer(low: int, high: int) -> Kind:
    """Take whole numbers from `low` to `high`, both included."""

    def check(value: Any, where: str) -> int:
        if not isinstance(value, bool):
            try:
                number = operator.index(value)
            except TypeError:
                pass
            else:
                if low <= number <= high:
                    return number
        raise invalid_option(where, f"an integer from {low} to {high}", value)

    return _plain(check)


def unsigned(bits: int, low: int = 0) -> Kind:
    """Take whole numbers of at least `low` that fit in `bits` bits."""
    return integer(low, 2**bits - 1)


def flag() -> Kind:
    """Take True or False."""

    def check(value: Any, where: str) -> bool:
        if isinstance(value, bool):
            return value
        raise invalid_option(where, "True or False", value)

    return _plain(check)


def text() -> Kind:
    """Take any string."""

    def check(value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        raise invalid_option(where, "a string", value)

    return _plain(check)


def member(names: Mapping[Enum, str]) -> Kind:
    """Take the members of an enumeration; `names` gives the stored form of each."""
    family = type(next(iter(names)))
    by_name = {name: value for value, name in names.items()}

    def check(value: Any, where: str) -> Enum:
        if isinstance(value, family):
            return value
        raise invalid_option(where, f"a member of {family.__name__}", value)

    def load(stored: Stored, where: str) -> Enum:
        if isinstance(stored, str) and stored in by_name:
            return by_name[stored]
        raise invalid_option(where, f"one of {', '.join(by_name)}", stored)

    return Kind(check, names.__getitem__, load)


def nested(cls: type[Options]) -> Kind:
    """Take options of another class."""

    def check(value: Any, where: str) -> Options:
        if isinstance(value, cls):
            return value
        raise invalid_option(where, f"a {cls.__name__}", value)

    return Kind(check, lambda value: value._dump(), lambda stored, where: cls._load(stored, where))


def stored_map(stored: Stored, where: str) -> dict[str, Stored]:
    """Return `stored` if it is a map with strings as keys."""
    if isinstance(stored, dict) and all(isinstance(key, str) for key in stored):
        return stored
    raise invalid_option(where, "a map", stored)


class Family(type):
    """A metaclass for namespaces: their classes count as variants of them.

    A class cannot inherit from the class whose body it is defined in, so ``isinstance`` is
    taught to look into that body.
    """

    def __instancecheck__(cls, instance: object) -> bool:
        return type(instance) in vars(cls).values()


class Options(Displayed):
    """Base of the configuration classes: mutable, and checked on every assignment."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    _kinds: ClassVar[dict[str, Kind]]
    #: Where the official client has the class, and in which order it shows the options.
    _module: ClassVar[str] = "icechunk.config"
    _order: ClassVar[tuple[str, ...]] = ()
    #: The values in force where an option is None, for display.
    _in_force: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        hints = {
            name: hint
            for name, hint in get_type_hints(cls, include_extras=True).items()
            if get_origin(hint) is Annotated
        }
        cls._kinds = {name: hint.__metadata__[0] for name, hint in hints.items()}
        # help() shows the types, not how they are checked
        cls.__annotations__.update({name: hint.__origin__ for name, hint in hints.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._kinds.get(name)
        if kind is None:
            raise AttributeError(
                f"{type(self).__name__} has no option {name!r}"
                + (meant(name, self._kinds) or f"; it has {', '.join(self._kinds)}")
            )
        if value is not None or self.__dataclass_fields__[name].default is not None:
            value = kind.check(value, f"{type(self).__name__}: {name}")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return call(
            self._name(),
            {name: text for name, _, text in self._texts(repr)},
        )

    def __str__(self) -> str:
        lines = {}
        for name, value, text in self._texts(str):
            default = self._in_force.get(name) if value is None else value
            if value is not None:
                lines[name] = text
            elif isinstance(default, Options):
                lines[name] = str(default)
            else:
                lines[name] = "None" if default is None else f"{literal(default)} (default)"
        return labelled(self._name(), lines)

    @classmethod
    def _name(cls) -> str:
        return f"{cls._module}.{cls.__name__}"

    def _texts(self, nested: Callable[[Any], str]) -> Iterator[tuple[str, Any, str]]:
        """Yield name, value and text of the options to be shown, in order."""
        for name in self._order or self._kinds:
            value = getattr(self, name)
            if value is None:
                yield name, None, "None"
            elif isinstance(value, dict):
                yield name, value, self._members(value, nested)
            elif isinstance(value, Displayed):
                yield name, value, nested(value)
            else:
                yield name, value, self._kinds[name].show(value)

    @staticmethod
    def _members(members: Mapping[str, Any], nested: Callable[[Any], str]) -> str:
        """Return a dict whose keys are URLs as text."""
        texts = {public_url(key): nested(value) for key, value in members.items()}
        if nested is repr:
            lines = (f"{literal(key)}: {text},\n" for key, text in texts.items())
            return "{\n" + indent("".join(lines), "    ") + "}" if texts else "{}"
        blocks = (f"{key}:\n{indent(text, '    ')}" for key, text in texts.items())
        return "".join(blocks) or "{}"

    def _dump(self) -> dict[str, Stored]:
        result: dict[str, Stored] = {}
        for name, kind in self._kinds.items():
            value = getattr(self, name)
            result[name] = None if value is None else kind.dump(value)
        return result

    @classmethod
    def _load(cls: type[OptionsType], stored: Stored, where: str) -> OptionsType:
        known = stored_map(stored, where)
        values = {}
        for name, kind in cls._kinds.items():
            value = known.get(name)
            if value is not None:
                values[name] = kind.load(value, f"{where}.{name}" if where else name)
            elif cls.__dataclass_fields__[name].default is dataclasses.MISSING:
                raise invalid_option(where, f"a map with {name!r}", sorted(known))
        return cls(**values)

    def _merge(self: OptionsType, other: OptionsType) -> OptionsType:
        values: dict[str, Any] = {}
        for name in self._kinds:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Options) and isinstance(theirs, Options):
                values[name] = mine._merge(theirs)
            else:
                # a copy: a later change to the result must not reach its sources
                values[name] = copy.deepcopy(mine if theirs is None else theirs)
        return type(self)(**values)


def in_force(options: Options, name: str) -> Any:
    """Return an option's value, or its default, or None.

    Options of options are laid over their defaults.
    """
    value, default = getattr(options, name), options._in_force.get(name)
    if value is None:
        return default
    if isinstance(default, Options):
        return default._merge(value)
    return value
