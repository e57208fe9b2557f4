"""Patterns match what Python's own engine matches, in a time that nobody can make long."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, strategies as st

from icechunk.config.conditions import ManifestSplitCondition, ManifestSplitDimCondition
from icechunk.config.linear_regex import MAX_PATTERN, compile_regex
from icechunk.errors import InvalidInputError

ATOMS = st.sampled_from(
    [
        *("a", "b", "A", ".", "/", r"\.", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"\b", r"\B"),
        *("^", "$", r"\A", r"\Z", "[ab]", "[^a]", r"[a-c\d]", r"[^\w/]", "[^A-Z_]", r"\n", "é"),
        *("(?i:a[b-z])", "(?s:.)", "(?m:^)", "(?m:$)", "(?-i:b)", "()"),
    ]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ways: f"(?:{'|'.join(ways)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{0,1}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda pattern: f"({pattern})"),
    ),
    max_leaves=6,
)
# Python 3.13 and older say that \B does not match in an empty string
SUBJECTS = st.text("abAB1_/.é \n", min_size=1, max_size=10)


@example(r"\D\A", "\n", "(?m)")
@example(r"\b", "é", "(?a)")
@given(PATTERNS, SUBJECTS, st.sampled_from(["", "(?i)", "(?m)", "(?s)", "(?a)", "(?x)"]))
def test_matches_are_those_of_python(pattern: str, subject: str, flags: str) -> None:
    compiled = compile_regex(flags + pattern)
    assert compiled is not None
    assert compiled.matches(subject) == (re.search(flags + pattern, subject) is not None)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("(a+)+$", "a" * 2000 + "b", False),
        ("^(a|a)*$", "a" * 2000 + "b", False),
        ("(a*)*b", "a" * 2000, False),
        (".*.*.*.*.*x", "a" * 2000, False),
        ("(.*,){20}x", "," * 500, False),
        ("(?:a?){100}a{100}", "a" * 100, True),
        ("(?i)TEMPERATURE", "/Ocean/Temperature", True),
    ],
)
def test_patterns_that_take_other_engines_for_ever(
    pattern: str, subject: str, expected: bool
) -> None:
    compiled = compile_regex(pattern)
    assert compiled is not None
    assert compiled.matches(subject) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "*",
        r"(a)\1",
        "(?=a)",
        "(?<!a)b",
        "(a)?(?(1)b|c)",
        "(?>a*)b",
        "a*+",
        "a" * (MAX_PATTERN + 1),
        "a{100000}",
        "((a{50}){50}){50}",
        "(((){9999}){9999}){9999}",
        "(" * 400 + ")" * 400 + "{2000}",
        "[",
        "\\",
    ],
)
def test_what_is_not_supported(pattern: str) -> None:
    assert compile_regex(pattern) is None
    with pytest.raises(InvalidInputError, match="a regular expression"):
        ManifestSplitCondition.path_matches(pattern)
    # a stored one matches nothing
    assert not ManifestSplitDimCondition.DimensionName(pattern).matches(0, "a")
