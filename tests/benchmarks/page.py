"""The table of ``docs/pages/performance.md`` from what `table.py` measured.

``python page.py FILE.json`` writes the page anew between its two marks, as ``table.py --markdown``
does. What misses its goal is told with the reason, where one is known; what fails is told, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/pages/performance.md"
BEGIN, END = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"

#: How many times as fast as official, or as little.
GOALS = {
    ("virtual_references", "set"): 2.0,
    ("virtual_references", "commit"): 4.0,
    ("virtual_references", "open and read one chunk"): 2.0,
    ("virtual_references", "all as columns"): 10.0,
    ("distinct_references", "set"): 1.5,
    ("distinct_references", "commit"): 3.0,
    ("distinct_references", "first chunk, cold"): 2.0,
    ("distinct_references", "collect garbage, dry run"): 2.0,
    ("long_locations", "set"): 1.0,
    ("long_locations", "first chunk, cold"): 2.0,
    ("long_locations", "first chunk, cold: peak MiB"): 1.0,
    ("long_locations", "collect garbage, dry run"): 2.0,
    ("many_arrays", "commit, cold"): 1.5,
    ("append", "append ten, commit"): 50.0,
    ("forks", "unpickle, merge, commit"): 6.0,
    ("long_history", "last 20 commits"): 1.0,
    ("long_history", "open and ancestry"): 1.0,
    ("many_manifests", "commit 4 KiB"): 1.0,
    ("many_manifests", "commit 4 bytes"): 1.0,
    ("small_chunks", "write, commit"): 1.2,
    ("small_chunks", "read"): 3.0,
    ("small_chunks", "200 at random"): 3.0,
    ("packed_chunks", "write, commit"): 6.0,
}
#: By workload and place: how many times as fast as zarr's own store.
FLOORS = {
    ("large_chunks", "folder"): 0.9,
    ("chunks_of_800_kb", "s3"): 0.95,
    ("chunks_of_12_mb", "s3"): 0.95,
    ("chunks_of_50_mb", "s3"): 0.95,
}
_SYNC = (
    "each commit waits until the disk has it, so that it survives a crash of the machine; official "
    "does not wait in a folder"
)
_ZSTD = "half of it is zstd, at the level of the configuration, which is that of official clients"
_ZARR = (
    "zarr's own work for each chunk, with a store in memory, is half of it, and its LocalStore "
    "takes as long of the processor as this project does"
)
#: Why a goal is missed, from profiles, by workload and step.
REASONS = {
    ("virtual_references", "commit"): _ZSTD,
    ("distinct_references", "commit"): _ZSTD,
    ("forks", "unpickle, merge, commit"): _ZSTD,
    ("long_history", "last 20 commits"): _SYNC
    + ". It waits twice: for what it stores, and for its name. Of what the processor does, half "
    "is for encoding three files, a fifth of that zstd; NumPy takes long for tables of one row",
    ("long_history", "open and ancestry"): "most of it is reading the repo info as columns, which "
    "takes NumPy a millisecond however short it is, and an eighth is decompressing it; with 2,000 "
    "commits the goal is reached",
    **dict.fromkeys(
        [("many_manifests", "commit 4 KiB"), ("many_manifests", "commit 4 bytes")],
        "each commit waits until the disk has it, with all its chunks, so that it survives a crash "
        "of the machine; official does not wait in a folder. A third of what the processor does is "
        "for encoding 500 manifests of a few references, for which NumPy takes long",
    ),
    ("long_locations", "set"): "half of it is copying the Python strings to memory that the "
    "system clears first; a quarter is finding out that they are distinct, and the rest is "
    "comparing them with the prefixes of containers",
    ("small_chunks", "write, commit"): _SYNC
    + ". Without that, three quarters are zarr's LocalStore: half its own work for each chunk, "
    "and half the system's for a file",
    ("large_chunks", "write, commit"): _SYNC,
    **dict.fromkeys(
        [(f"chunks_of_{size}", "write, commit") for size in ("800_kb", "12_mb", "50_mb")],
        "a commit follows the chunks, with its four requests, which zarr's store does not make",
    ),
    ("small_chunks", "read"): _ZARR,
    ("small_chunks", "200 at random"): _ZARR,
    ("packed_chunks", "write, commit"): "three quarters are zarr's own work for each chunk, with "
    "a store in memory",
    ("append", "append ten, commit"): "nearly all of it is the commit of a manifest of ten "
    "references; it waits until the disk has it, which official does not in a folder",
    ("virtual_references", "all as columns"): "a third is decompressing the manifests, and most "
    "of the rest is reading the positions of fields and the fields, which NumPy collects one by "
    "one",
    ("distinct_references", "set"): "a million Python strings are joined and measured, which is "
    "a third; another is hashing them and sorting the hashes to see that they are distinct; the "
    "rest is comparing them with the prefixes of containers",
    **dict.fromkeys(
        [
            ("virtual_references", "open and read one chunk"),
            ("distinct_references", "first chunk, cold"),
            ("long_locations", "first chunk, cold"),
        ],
        "most of it is decompressing one manifest, and opening the repository in a new process",
    ),
    ("chunks_of_800_kb", "read"): "a manifest is fetched before the chunks, with a request that "
    "zarr's store does not make",
    ("chunks_of_12_mb", "read"): "a manifest is fetched before the chunks, and each body is "
    "measured against what the server announced",
    ("chunks_of_50_mb", "read"): "a body is read in pieces, by several requests, and each piece is "
    "copied once more than zarr's store does",
    **dict.fromkeys(
        [(name, "collect garbage, dry run") for name in ("distinct_references", "long_locations")],
        "all manifests are decompressed and their ids checked",
    ),
}
HEADS = ("workload", "place", "step", "ours", "official", "zarr", "ratio", "of CPU", "goal")


def table(measured: dict[str, Any]) -> str:
    """Return the table and what is to be said about it, as Markdown."""
    larger = {r["workload"]: r["scale"] for r in measured["rows"] if r["scale"] > measured["scale"]}
    more = "".join(f", of `{name}` {scale:g}" for name, scale in larger.items())
    lines = [
        f"Measured on: {measured['machine']}; scale {measured['scale']:g}{more}{_load(measured)}.",
        "",
        "| " + " | ".join(HEADS) + " |",
        "| --- " * len(HEADS) + "|",
    ]
    missed, failed = [], []
    for row in measured["rows"]:
        key = row["workload"], row["step"]
        title = f"`{row['workload']}` ({row['place']})"
        if "failures" in row:
            failed += [f"- {title}, {who}: {why}" for who, why in row["failures"].items()]
            continue
        # elsewhere the server's time hides ours
        goal = GOALS.get(key) if row["place"] == "folder" else None
        cells = [f"`{row['workload']}`", row["place"], row["step"]]
        cells += [_cell(row.get(who), row["unit"]) for who in ("ours", "official", "zarr")]
        floor = FLOORS.get((row["workload"], row["place"])) if row["unit"] == "s" else None
        told = f"{goal:g}" if goal else f"{floor:g} of zarr" if floor else ""
        cells += [f"{row['ratio']:.2g}" if "ratio" in row else "", _of_cpu(row), told]
        lines.append("| " + " | ".join(cells) + " |")
        for ratio, wanted, other in (("ratio", goal, ""), ("floor", floor, " of zarr's store")):
            if wanted and row.get(ratio, wanted) < wanted:
                why = REASONS.get(key, "no profile was taken yet")
                missed.append(
                    f"- {title}, {row['step']}: {row[ratio]:.2g} of {wanted:g}{other}: {why}."
                )
    if missed:
        lines += ["", "## Goals that are missed", "", *missed]
    if failed:
        lines += ["", "## What failed", "", *failed]
    return "\n".join(lines) + "\n"


def _load(measured: dict[str, Any]) -> str:
    """Return what else the machine did, as the system counts it."""
    if "load" not in measured:
        return ""
    before, after = measured["load"][0], measured["load"][-1]
    return f"; load {before:g} before and {after:g} after {measured.get('minutes', 0):g} minutes"


def _of_cpu(row: dict[str, Any]) -> str:
    """Return how many times as much of the processor official needs."""
    times = [row.get(who, {}).get("cpu") for who in ("official", "ours")]
    return f"{times[0] / times[1]:.2g}" if all(times) else ""


def _cell(value: dict[str, float] | None, unit: str) -> str:
    if value is None:
        return ""
    digits = ".3f" if unit == "s" else ",.0f"
    spread = f" ±{value['spread'] / 2:{digits}}" if value["spread"] else ""
    return f"{value['median']:{digits}}{' s' if unit == 's' else ''}{spread}"


def write(measured: dict[str, Any]) -> None:
    """Write the page anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + table(measured) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
