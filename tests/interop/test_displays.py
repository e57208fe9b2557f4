"""Objects look alike under both clients, character for character."""

from __future__ import annotations

from tests.interop.sides import Official, Ours

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
