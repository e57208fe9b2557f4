"""Strategies for what metadata may hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

#: FlexBuffers end a key at its first NUL.
keys = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=12),
)

values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(st.integers(-300, 300), max_size=6),
        st.lists(st.floats(-10, 10), max_size=5),
        st.lists(st.booleans(), max_size=5),
        st.dictionaries(keys, inner, max_size=5),
    ),
    max_leaves=25,
)

objects = st.dictionaries(keys, values, max_size=5)
