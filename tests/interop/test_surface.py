"""Every difference between the names of this project and of the official client is known.

What `differences` finds must be in the tables of COMPATIBILITY.md, each with its reason, and
what the tables say must still be so. The first cell of a row is a pattern, as of a shell.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hypothesis import given, settings, strategies as st

import icechunk
from tests.interop.sides import Official, Ours
from tests.interop.surface import Description
from tests.web_server import serving

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def differences(mine: dict[str, Description], theirs: dict[str, Description]) -> list[str]:
    """Return what a program for the official client would notice, and what it does not know."""
    found: list[str] = []
    for path, their in theirs.items():
        if their["kind"] == "not in the stub":
            continue
        if path in mine:
            if mine[path]["kind"] == their["kind"] == "alias":
                continue
            found += _compare(path, _resolve(path, mine), _resolve(path, theirs))
        elif path.rpartition(".")[0] in mine:
            found.append(f"missing {path}")
    for path in mine:
        if path not in theirs and path.rpartition(".")[0] in theirs:
            found.append(f"extra {path}")
    return found


def _resolve(path: str, described: dict[str, Description]) -> Description:
    found = described[path]
    return described[f"icechunk.{path.rpartition('.')[2]}"] if found["kind"] == "alias" else found


def _compare(path: str, mine: Description, theirs: Description) -> Iterator[str]:
    if mine["kind"] != theirs["kind"]:
        yield f"{path} is of kind {mine['kind']}, not {theirs['kind']}"
        return
    if mine.get("async") != theirs.get("async"):
        yield f"{path} differs in being a coroutine function"
    if mine.get("value") != theirs.get("value"):
        yield f"{path} has the value {mine.get('value')}, not {theirs.get('value')}"
    if theirs.get("settable") and not mine.get("settable"):
        yield f"{path} cannot be set"
    for name in sorted({*theirs.get("special", ())} - {*mine.get("special", ())}):
        yield f"{path} has no {name}"
    for name in theirs.get("bases", ()):
        if name not in mine.get("bases", ()):
            yield f"{path} is no {name}"
    if theirs.get("parameters") is not None and mine.get("parameters") is not None:
        yield from _compare_parameters(path, mine["parameters"], theirs["parameters"])


def _compare_parameters(path: str, mine: Any, theirs: Any) -> Iterator[str]:
    known = {name: (i, kind, default) for i, (name, kind, default) in enumerate(mine)}
    for i, (name, kind, default) in enumerate(theirs):
        if name.startswith("_"):
            # a name that nobody calls it by
            if i >= len(mine):
                yield f"{path}({name}) is missing"
            continue
        if name not in known:
            yield f"{path}({name}) is missing"
            continue
        place, my_kind, my_default = known[name]
        # no program relies on the absence of a default
        if default != my_default and "?" not in my_default and default != "required":
            yield f"{path}({name}) is {my_default} by default, not {default}"
        if kind.startswith("positional") and (place, my_kind) != (i, kind):
            yield f"{path}({name}) is {my_kind} number {place}, not {kind} number {i}"
    for i, (name, _, default) in enumerate(mine):
        if name not in {their[0] for their in theirs}:
            if i < len(theirs) and theirs[i][0].startswith("_"):
                continue
            yield f"{path}({name}) is extra{', and required' if default == 'required' else ''}"


def _known(text: str) -> list[str]:
    return _ROW.findall(text)


def test_every_difference_is_known(ours: Ours, official: Official) -> None:
    modules = official.run("surface.modules")
    found = differences(
        ours.run("surface.surface", modules), official.run("surface.surface", modules)
    )
    known = _known((ROOT / "COMPATIBILITY.md").read_text(encoding="utf-8"))
    unknown = [item for item in found if not any(fnmatchcase(item, row) for row in known)]
    assert not unknown, "not in COMPATIBILITY.md:\n" + "\n".join(unknown)
    past = [row for row in known if not any(fnmatchcase(item, row) for item in found)]
    assert not past, "no longer so, but in COMPATIBILITY.md:\n" + "\n".join(past)


#: The official client accepts these, or they do harm later.
ACCEPTED_THERE = {
    "azure_from_env_and_anon",
    "fork_rearrange",
    "gcs_two",
    "merge_nonfork",
    "preload_regex",
    "split_regex",
    "split_zero",
}
#: Times as text, or without a zone, which are in UTC here.
ACCEPTED_HERE = {"expire_naive", "expire_text", "gc_naive"}
#: Storages that are described wrongly: invalid input here, a failure of the storage there.
MISDESCRIBED = {
    "http_no_url",
    "r2_no_account",
    "r2_nothing",
    "redirect_no_url",
    "tigris_no_region",
}


def test_both_refuse_the_same_mistakes(ours: Ours, official: Official) -> None:
    mine, theirs = ours.run("mistakes.outcomes"), official.run("mistakes.outcomes")
    for name, their in theirs.items():
        if name in ACCEPTED_HERE:
            assert not mine[name]
            continue
        assert mine[name], f"{name} is accepted"
        my_class, my_kind, my_bases = mine[name]
        if not their:
            assert name in ACCEPTED_THERE
        elif name in MISDESCRIBED:
            assert (my_class, their[0]) == ("InvalidInputError", "StorageError")
        elif "IcechunkError" in their[2]:
            # a class of ours may say more
            assert their[0] in my_bases and my_kind == their[1], name
        else:
            # what its bindings raise by themselves; here it has a kind, and names the option
            assert my_class == their[0] or "IcechunkError" in my_bases, name


def test_objects_can_do_what_theirs_can(ours: Ours, official: Official) -> None:
    mine, theirs = ours.run("values.abilities"), official.run("values.abilities")
    lacking = [
        f"{name} {ability}"
        for name, abilities in theirs.items()
        for ability, able in abilities.items()
        if able and not mine[name][ability]
    ]
    assert not lacking


LABELS = st.text(st.sampled_from([*string.printable, "\x7f", "é"]), max_size=10) | st.integers(
    126, 130
).map(lambda n: "x" * n)


@settings(max_examples=30)
@given(labels=st.dictionaries(st.sampled_from(["client", "workload", "principal"]), LABELS))
def test_both_attribute_requests_alike(
    labels: dict[str, str], ours: Ours, official: Official
) -> None:
    heard = []
    for side, name in ((ours, icechunk.user_agent()), (official, "icechunk/2.3.0")):
        with serving() as server:
            accepted = side.run("ask_as", server.url, labels)
        agents = {headers["user-agent"] for _, headers in server.requests}
        heard.append({agent.replace(name, "LIBRARY") for agent in agents} if accepted else None)
    assert heard[0] == heard[1]
