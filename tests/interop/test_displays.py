"""Objects look alike under both clients, character for character, and messages begin alike."""

from __future__ import annotations

from pathlib import Path

from icechunk.base.first_words import FIRST_WORDS
from tests.interop.sides import Bases, Official, Ours

#: What is different on purpose, for the reasons in COMPATIBILITY.md: here, and there.
DIFFERENT = {
    "http store, set": ('{"timeout": "3s"}', 'Some({"timeout": "3s"})'),
    "settings of a folder": (
        "unsafe_use_conditional_update: True (default)\nunsafe_use_metadata: True (default)",
        "unsafe_use_conditional_update: False\nunsafe_use_metadata: False",
    ),
    "r2": ("anonymous: True\n", "anonymous: True\nforce_path_style: True\n"),
    "snapshot": ("metadata: {}", "metadata: PySnapshotProperties({})"),
}


def test_objects_look_alike(ours: Ours, official: Official) -> None:
    mine, theirs = ours.run("displays.texts"), official.run("displays.texts")
    assert mine.keys() == theirs.keys()
    assert len(mine) >= 100
    for name, (here, there) in DIFFERENT.items():
        shown, expected = mine.pop(name)[0], theirs.pop(name)[0]
        assert here in shown
        assert shown.replace(here, there) == expected, name
    assert mine == theirs


def test_nothing_secret_is_shown(ours: Ours) -> None:
    assert "hidden" not in str(ours.run("displays.texts"))


#: Errors whose kind says nothing that the words of official add to.
OWN_WORDS = {
    "move_into_itself",
    "r2_nothing",
    "r2_no_account",
    "tigris_no_region",
    "move_below_nothing",
    "move_below_an_array",
    "move_where_moves_are_switched_off",
    "tag_where_tags_are_switched_off",
    "metadata_of_format_2",
    "readonly_before",
    "virtual_chunk_that_is_no_url",
    # empty chunks are looked at before containers
    "virtual_chunk_without_bytes",
}


#: These are right for some of the errors of their kind only.
WORDS = {
    **FIRST_WORDS,
    # the default of InvalidInputError, so that the message itself has them
    "invalid-key": "invalid zarr key format",
    "cannot-fork-read-only-session": "cannot fork a read-only session",
    "invalid-chunk-index": "invalid chunk index",
}


def test_messages_begin_alike(bases: Bases, tmp_path: Path) -> None:
    (ours, my_base), (official, their_base) = bases
    mine = ours.run("displays.messages", my_base, str(tmp_path / "ours"))
    theirs = official.run("displays.messages", their_base, str(tmp_path / "official"))
    compared = 0
    for name, (kind, message) in theirs.items():
        my_kind, my_message = mine.get(name) or ("", "")
        if not kind or kind != my_kind or name in OWN_WORDS:
            continue
        words = WORDS[my_kind]
        assert my_message.startswith(words), name
        # what it was doing comes first there
        their_words = message.removeprefix("session error: ")
        their_words = their_words.removeprefix("error rewriting manifests: ")
        assert their_words.startswith(words), name
        # then comes what is precise, and what to do
        assert len(my_message) > len(words) + 2, name
        compared += 1
    assert compared >= 55
