"""Calls and arguments that messages advise: each of them exists, and takes what is advised."""

from __future__ import annotations

import ast
import builtins
import concurrent.futures
import datetime
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dask
import dask.array
import distributed
import xarray
import zarr

import icechunk
import icechunk.kerchunk
import icechunk_dask
import icechunk_xarray

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = (icechunk, icechunk_dask, icechunk_xarray)
#: A call with what is in its parentheses, or an argument with what it is given.
ADVICE: Final = re.compile(
    r"(?<![\w.{'\"/(])(?P<call>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)"
    r"\((?P<inside>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)"
    r"|(?<![\w.{'\"&?/])(?P<argument>[a-z_]\w+)=(?=[\w'\"\[{]|[ ,;:.]|$)"
)
#: What messages call objects by.
NAMED: Final[dict[str, Any]] = {
    "client": distributed.Client,
    "concurrent": concurrent,
    "config": icechunk.RepositoryConfig,
    "dask": dask,
    "datetime": datetime.datetime,
    "fork": icechunk.ForkSession,
    "icechunk": icechunk,
    "icechunk_dask": icechunk_dask,
    "icechunk_xarray": icechunk_xarray,
    "job": icechunk.Job,
    "repo": icechunk.Repository,
    "session": icechunk.Session,
    "text": str,
    "xarray": xarray,
    "xr": xarray,
    "zarr": zarr,
}
#: Where a bare name is looked for.
PLACES: Final = (
    *PACKAGES,
    icechunk.credentials,
    icechunk.Session,
    icechunk.Repository,
    icechunk.IcechunkStore,
    icechunk.Job,
    dask.array.Array,
    # an object of it has every attribute
    type(dask.delayed("a value")),
    datetime.datetime,
    datetime,
    builtins,
)
#: What properties give.
JOBS: Final[Any] = importlib.import_module("icechunk.repository.jobs").Jobs
#: Displays as the official client has them, examples of values, code, and widths in pictures.
NO_ADVICE: Final = re.compile(
    r"icechunk\.config\.ManifestSplitDimCondition\.\w+|time|width|datetime\.datetime|h|StringHeap|"
    # other tests take the parser
    r"json\.loads|main|HDFParser"
)


def texts(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the strings of a module that are no docstrings, with ``{}`` for values."""
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            parts.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            parts.update(map(id, node.values))
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno
        if isinstance(node, ast.JoinedStr):
            values = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield "".join(map(str, values)), node.lineno


@functools.cache
def found() -> dict[tuple[str, str], str]:
    """Return calls with their insides, and arguments, with a place where each is advised."""
    result: dict[tuple[str, str], str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package.__name__).rglob("*.py")):
            for text, line in texts(ast.parse(path.read_text())):
                # sentences, and not pages, patterns or code
                if len(text) < 30 or re.search(r"</|/>|\(\?|<\w+ ", text) or "\n" in text:
                    continue
                for match in ADVICE.finditer(text):
                    if NO_ADVICE.fullmatch(match["call"] or match["argument"]):
                        continue
                    pair = (match["call"] or "", match["inside"] or match["argument"] or "")
                    result.setdefault(pair, f"{path.relative_to(ROOT)}:{line}")
    return result


def looked_up(name: str) -> Any:
    """Return what a dotted name means in a message, None if nothing does."""
    first, *rest = name.split(".")
    for holder in [NAMED.get(first), *(getattr(place, first, None) for place in PLACES)]:
        value = holder
        for part in rest:
            if isinstance(value, property):
                value = JOBS
            value = getattr(value, part, None)
        if callable(value):
            return value
    return None


def wrong(name: str, inside: str) -> Iterator[str]:
    """Yield what is wrong with a call that is advised."""
    function = looked_up(name)
    if function is None:
        yield f"{name}(), which does not exist"
        return
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        # of C
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    # those of calls in it belong to these
    outer, before = inside, ""
    while outer != before:
        outer, before = re.sub(r"\w*\([^()]*\)", "", outer), outer
    for keyword in re.findall(r"(?<![\w.])(\w+)=", outer):
        if keyword not in parameters:
            yield f"{name}({keyword}=), which it does not take"


def test_calls_exist() -> None:
    told = [
        f"{where} advises {what}"
        for (name, inside), where in found().items()
        if name
        for what in wrong(name, inside)
    ]
    assert not told


def parameters_of_all() -> set[str]:
    """Return the names of all arguments of what is public, here and where advice leads."""
    names: set[str] = set()
    others = [zarr, xarray, xarray.Dataset, distributed.Client, dask.array.Array]
    for place in (*PACKAGES, icechunk.config, icechunk.kerchunk, icechunk.storage, *others):
        for name in [*getattr(place, "__all__", []), *dir(place)]:
            value = getattr(place, name, None)
            members = vars(value).values() if inspect.isclass(value) else ()
            for each in (value, *members):
                function = getattr(each, "__func__", each)
                try:
                    names.update(inspect.signature(function).parameters)
                except (TypeError, ValueError):
                    continue
    return names


def test_arguments_exist() -> None:
    known = parameters_of_all()
    unknown = {
        argument: where
        for (call, argument), where in found().items()
        if not call and argument not in known
    }
    assert not unknown


def test_there_is_advice() -> None:
    """So that a pattern which finds nothing is noticed."""
    calls = {pair for pair in found() if pair[0]}
    assert len(calls) > 40
    assert len(found()) - len(calls) > 40
    assert ("run", "func, keys=job.status().left") in calls
