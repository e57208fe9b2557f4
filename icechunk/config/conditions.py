"""Conditions on arrays and dimensions, used to preload and to split manifests.

Conditions are immutable, hashable values that are built with the functions of their
class and combined with ``|`` and ``&``. A regular expression matches anywhere in its
subject unless it is anchored; one that cannot be compiled matches nothing, because a
repository may hold one that only another implementation's engine understands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar, cast

from icechunk.base.texts import literal
from icechunk.config.linear_regex import MAX_PATTERN, compile_regex
from icechunk.config.options import Family, Kind, Stored, invalid_option, stored_map, text, unsigned
from icechunk.errors import ErrorKind, InvalidInputError

__all__ = [
    "ManifestPreloadCondition",
    "ManifestSplitCondition",
    "ManifestSplitDimCondition",
]

#: Nobody writes a condition that is nested deeper than this.
_MAX_DEPTH: Final = 32

_COUNT: Final = unsigned(32)
_TEXT: Final = text()
_AXIS: Final = unsigned(64)

_C = TypeVar("_C", bound="_ArrayCondition")


def _matches(regex: str, subject: str) -> bool:
    pattern = compile_regex(regex)
    return pattern is not None and pattern.matches(subject)


def _valid_regex(regex: str, where: str) -> str:
    _TEXT.check(regex, where)
    if compile_regex(regex) is None:
        raise invalid_option(
            where,
            f"a regular expression of at most {MAX_PATTERN} characters, without look-around, "
            "back-references and large counts",
            regex,
        )
    return regex


@dataclass(frozen=True, repr=False)
class _ArrayCondition:
    """A node of a condition's tree: its kind and what it holds.

    `value` is a tuple of conditions for ``or`` and ``and``, a regular expression for
    ``path_matches`` and ``name_matches``, ``(first, end)`` for ``num_refs``, and None
    for the rest.
    """

    kind: str
    value: Any = None

    def __post_init__(self) -> None:
        if self.depth > _MAX_DEPTH:
            raise InvalidInputError(
                f"{type(self).__name__}: conditions nest deeper than {_MAX_DEPTH}",
                ErrorKind.STORAGE_CONFIG,
            )

    @property
    def depth(self) -> int:
        """The height of the tree, 1 for a condition without parts."""
        if self.kind in ("or", "and"):
            return 1 + max((part.depth for part in self.value), default=0)
        return 1

    @classmethod
    def _combined(cls: type[_C], kind: str, conditions: Iterable[_C]) -> _C:
        parts = tuple(conditions)
        for part in parts:
            if not isinstance(part, cls):
                raise invalid_option(f"{cls.__name__}: a part", f"a {cls.__name__}", part)
        return cls(kind, parts)

    @classmethod
    def or_conditions(cls: type[_C], conditions: Iterable[_C]) -> _C:
        """Hold if one of the conditions does; without conditions, never."""
        return cls._combined("or", conditions)

    @classmethod
    def and_conditions(cls: type[_C], conditions: Iterable[_C]) -> _C:
        """Hold if all conditions do; without conditions, always."""
        return cls._combined("and", conditions)

    @classmethod
    def path_matches(cls: type[_C], regex: str) -> _C:
        """Hold for arrays whose absolute path matches."""
        return cls("path_matches", _valid_regex(regex, f"{cls.__name__}.path_matches: regex"))

    @classmethod
    def name_matches(cls: type[_C], regex: str) -> _C:
        """Hold for arrays whose name, the last segment of the path, matches."""
        return cls("name_matches", _valid_regex(regex, f"{cls.__name__}.name_matches: regex"))

    def __or__(self: _C, other: _C) -> _C:
        # flat, so that a long chain of | does not nest
        mine = self.value if self.kind == "or" else (self,)
        return self._combined("or", (*mine, other))

    def __and__(self: _C, other: _C) -> _C:
        mine = self.value if self.kind == "and" else (self,)
        return self._combined("and", (*mine, other))

    def __repr__(self) -> str:
        name = f"icechunk.config.{type(self).__name__}.{self._constructor()}"
        if self.kind in ("or", "and"):
            return f"{name}({list(self.value)!r})"
        if self.value is None:
            return f"{name}()"
        if isinstance(self.value, tuple):
            return f"{name}{self.value!r}"
        return f"{name}({literal(self.value)})"

    def _constructor(self) -> str:
        return f"{self.kind}_conditions" if self.kind in ("or", "and") else self.kind

    def _holds(self, path: str, num_refs: int) -> bool:
        if self.kind == "or":
            return any(part._holds(path, num_refs) for part in self.value)
        if self.kind == "and":
            return all(part._holds(path, num_refs) for part in self.value)
        if self.kind == "path_matches":
            return _matches(self.value, path)
        if self.kind == "name_matches":
            return _matches(self.value, path.rsplit("/", 1)[-1])
        if self.kind == "num_refs":
            first, end = self.value
            return (first is None or num_refs >= first) and (end is None or num_refs < end)
        return self.kind in ("true", "any_array")

    def _dump(self) -> Stored:
        if self.kind in ("or", "and"):
            return {self.kind: [part._dump() for part in self.value]}
        if self.kind in ("path_matches", "name_matches"):
            return {self.kind: {"regex": self.value}}
        if self.kind == "num_refs":
            first, end = self.value
            return {
                "num_refs": {
                    "from": "Unbounded" if first is None else {"Included": first},
                    "to": "Unbounded" if end is None else {"Excluded": end},
                }
            }
        return self.kind

    @classmethod
    def _load(cls: type[_C], stored: Stored, where: str, depth: int = 1) -> _C:
        if depth > _MAX_DEPTH:
            raise invalid_option(where, f"nested at most {_MAX_DEPTH} deep", "...")
        if isinstance(stored, str) and stored in cls._leaves():
            return cls(stored)
        if isinstance(stored, dict) and len(stored) == 1:
            kind, value = next(iter(stored.items()))
            path = f"{where}.{kind}"
            if kind in ("or", "and") and isinstance(value, list):
                return cls(
                    kind,
                    tuple(
                        cls._load(part, f"{path}[{i}]", depth + 1) for i, part in enumerate(value)
                    ),
                )
            if kind in ("path_matches", "name_matches"):
                regex = stored_map(value, path).get("regex")
                return cls(kind, _TEXT.load(regex, f"{path}.regex"))
            if kind == "num_refs" and kind in cls._branches():
                bounds = stored_map(value, path)
                first, end = bounds.get("from"), bounds.get("to")
                return cls(
                    kind,
                    (
                        _load_bound(first, f"{path}.from", {"Included": 0, "Excluded": 1}),
                        _load_bound(end, f"{path}.to", {"Included": 1, "Excluded": 0}),
                    ),
                )
        raise invalid_option(where, "a condition", stored)

    @classmethod
    def _leaves(cls) -> tuple[str, ...]:
        raise NotImplementedError

    @classmethod
    def _branches(cls) -> tuple[str, ...]:
        return ()


def _load_bound(stored: Stored, where: str, shift: dict[str, int]) -> int | None:
    """Return a bound of a half-open range. `shift` is what each variant adds to it."""
    if stored is None or stored == "Unbounded":
        return None
    if isinstance(stored, dict) and len(stored) == 1:
        variant, number = next(iter(stored.items()))
        if variant in shift:
            return cast(int, _COUNT.load(number, where)) + shift[variant]
    raise invalid_option(where, "a bound", stored)


class ManifestPreloadCondition(_ArrayCondition):
    """Which arrays' manifests are fetched when a session opens.

    Examples
    --------
    >>> condition = icechunk.ManifestPreloadCondition.name_matches("^time$")
    """

    @staticmethod
    def num_refs(from_refs: int | None, to_refs: int | None) -> ManifestPreloadCondition:
        """Hold for manifests with `from_refs` chunk references or more, below `to_refs`.

        None leaves that side open.
        """
        where = "ManifestPreloadCondition.num_refs"
        for bound in (from_refs, to_refs):
            if bound is not None:
                _COUNT.check(bound, f"{where}: a bound")
        return ManifestPreloadCondition("num_refs", (from_refs, to_refs))

    @staticmethod
    def true() -> ManifestPreloadCondition:
        """Hold for every array."""
        return ManifestPreloadCondition("true")

    @staticmethod
    def false() -> ManifestPreloadCondition:
        """Hold for no array."""
        return ManifestPreloadCondition("false")

    def matches(self, path: str, num_refs: int) -> bool:
        """Whether this holds for a manifest with `num_refs` references of array `path`."""
        return self._holds(path, num_refs)

    @classmethod
    def _leaves(cls) -> tuple[str, ...]:
        return "true", "false"

    @classmethod
    def _branches(cls) -> tuple[str, ...]:
        return ("num_refs",)


class ManifestSplitCondition(_ArrayCondition):
    """Which arrays a rule for splitting manifests is for.

    Examples
    --------
    >>> condition = icechunk.ManifestSplitCondition.name_matches("^temperature$")
    """

    @staticmethod
    def AnyArray() -> ManifestSplitCondition:  # noqa: N802 (the API's name)
        """Hold for every array."""
        return ManifestSplitCondition("any_array")

    def matches(self, path: str) -> bool:
        """Whether this holds for the array with this absolute path."""
        return self._holds(path, 0)

    @classmethod
    def _leaves(cls) -> tuple[str, ...]:
        return ("any_array",)


class ManifestSplitDimCondition(metaclass=Family):
    """Which dimensions of an array a number of chunks is for.

    Examples
    --------
    >>> condition = icechunk.ManifestSplitDimCondition.DimensionName("time")
    """

    @dataclass(frozen=True, repr=False)
    class Axis:
        """The dimension at this position, from 0."""

        axis: int

        def __post_init__(self) -> None:
            _AXIS.check(self.axis, "ManifestSplitDimCondition.Axis: axis")

        def matches(self, axis: int, name: str | None) -> bool:
            """Whether this is about dimension `axis`, called `name`."""
            return axis == self.axis

        def __repr__(self) -> str:
            return f"icechunk.config.ManifestSplitDimCondition.axis({self.axis})"

    @dataclass(frozen=True, repr=False)
    class DimensionName:
        """The dimensions whose name matches; never those without a name."""

        regex: str

        def __post_init__(self) -> None:
            _TEXT.check(self.regex, "ManifestSplitDimCondition.DimensionName: regex")

        def matches(self, axis: int, name: str | None) -> bool:
            """Whether this is about dimension `axis`, called `name`."""
            return name is not None and _matches(self.regex, name)

        def __repr__(self) -> str:
            return (
                f"icechunk.config.ManifestSplitDimCondition.dimension_name({literal(self.regex)})"
            )

    @dataclass(frozen=True, repr=False)
    class Any:
        """All dimensions."""

        def matches(self, axis: int, name: str | None) -> bool:
            """Whether this is about dimension `axis`, called `name`: always."""
            return True

        def __repr__(self) -> str:
            return "icechunk.config.ManifestSplitDimCondition.any()"


AnyDimCondition: TypeAlias = (
    ManifestSplitDimCondition.Axis
    | ManifestSplitDimCondition.DimensionName
    | ManifestSplitDimCondition.Any
)

SplitRules: TypeAlias = tuple[
    tuple[ManifestSplitCondition, tuple[tuple[AnyDimCondition, int], ...]], ...
]

_NUM_CHUNKS: Final = unsigned(32, low=1)


def _check_split_sizes(value: Any, where: str) -> SplitRules:
    try:
        rules = tuple((array, tuple((dim, n) for dim, n in dims)) for array, dims in value)
    except (TypeError, ValueError):
        raise invalid_option(
            where, "pairs of an array condition and pairs of a dimension and a size", value
        ) from None
    for array, dims in rules:
        if not isinstance(array, ManifestSplitCondition):
            raise invalid_option(f"{where}: a key", "a ManifestSplitCondition", array)
        for dim, num_chunks in dims:
            if not isinstance(dim, ManifestSplitDimCondition):
                raise invalid_option(f"{where}: a key", "a ManifestSplitDimCondition", dim)
            _NUM_CHUNKS.check(num_chunks, f"{where}: number of chunks for {dim!r}")
    return rules


def _dump_dim(dim: AnyDimCondition) -> Stored:
    if isinstance(dim, ManifestSplitDimCondition.Axis):
        return {"Axis": dim.axis}
    if isinstance(dim, ManifestSplitDimCondition.DimensionName):
        return {"DimensionName": dim.regex}
    return "Any"


def _load_dim(stored: Stored, where: str) -> AnyDimCondition:
    if stored == "Any":
        return ManifestSplitDimCondition.Any()
    if isinstance(stored, dict) and len(stored) == 1:
        variant, value = next(iter(stored.items()))
        if variant == "Axis":
            return ManifestSplitDimCondition.Axis(_AXIS.load(value, where))
        if variant == "DimensionName":
            return ManifestSplitDimCondition.DimensionName(_TEXT.load(value, where))
    raise invalid_option(where, "a condition on dimensions", stored)


def _dump_split_sizes(rules: SplitRules) -> Stored:
    return [
        [
            condition._dump(),
            [{"condition": _dump_dim(dim), "num_chunks": size} for dim, size in dims],
        ]
        for condition, dims in rules
    ]


def _show_split_sizes(rules: SplitRules) -> str:
    return repr([(condition, list(dims)) for condition, dims in rules])


def _load_split_sizes(stored: Stored, where: str) -> SplitRules:
    if not isinstance(stored, list):
        raise invalid_option(where, "a list", stored)
    rules = []
    for i, rule in enumerate(stored):
        at = f"{where}[{i}]"
        if not (isinstance(rule, list) and len(rule) == 2 and isinstance(rule[1], list)):
            raise invalid_option(at, "a pair of a condition and a list", rule)
        dims = []
        for j, stored_dim in enumerate(rule[1]):
            known = stored_map(stored_dim, f"{at}[1][{j}]")
            dims.append(
                (
                    _load_dim(known.get("condition"), f"{at}[1][{j}].condition"),
                    _NUM_CHUNKS.load(known.get("num_chunks"), f"{at}[1][{j}].num_chunks"),
                )
            )
        rules.append((ManifestSplitCondition._load(rule[0], f"{at}[0]"), tuple(dims)))
    return tuple(rules)


def preload_condition() -> Kind:
    """Take conditions on the arrays to preload."""

    def check(value: Any, where: str) -> ManifestPreloadCondition:
        if isinstance(value, ManifestPreloadCondition):
            return value
        raise invalid_option(where, "a ManifestPreloadCondition", value)

    return Kind(check, lambda value: value._dump(), ManifestPreloadCondition._load)


def splitting_rules() -> Kind:
    """Take rules for splitting: array condition, then dimension conditions with sizes."""
    return Kind(_check_split_sizes, _dump_split_sizes, _load_split_sizes, _show_split_sizes)
