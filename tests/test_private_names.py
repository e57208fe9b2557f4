"""Private names of xarray, Dask and Zarr: one module for each library uses them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from zarr.abc.store import Store

ROOT = Path(__file__).parent.parent
PACKAGES = ("icechunk", "icechunk_dask", "icechunk_xarray")
#: The module that may use private names of a library.
INTERNALS = {
    "dask": "icechunk_dask/dask_internals.py",
    "distributed": "icechunk_dask/dask_internals.py",
    "xarray": "icechunk_xarray/xarray_internals.py",
    "zarr": "icechunk/base/zarr_internals.py",
}
#: Modules without an underscore that the libraries do not document.
UNDOCUMENTED = ("zarr.core", "xarray.core", "dask.layers", "xarray.namedarray")


def library_of(module: str) -> str | None:
    top = module.partition(".")[0]
    return top if top in INTERNALS else None


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield library and full name of what is imported, or named in full, and is private."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names += [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    for name in names:
        library = library_of(name)
        undocumented = any(f"{name}.".startswith(f"{module}.") for module in UNDOCUMENTED)
        if library and (undocumented or any(map(is_private, name.split(".")))):
            yield library, name


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module defines itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
        ):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # slots, and what `object.__setattr__` is given
            yield node.value


#: What a class that derives from Zarr's store gets from it.
OF_STORES = frozenset(name for name in [*dir(Store), "_is_open"] if is_private(name))
#: Documented, or made for others, in spite of their names: what is an event loop says so.
DOCUMENTED = {
    "asyncio._get_running_loop",
    "asyncio._set_running_loop",
    "os._exit",
    "sys._getframe",
}


def private_attributes(tree: ast.AST, own: frozenset[str]) -> Iterator[str]:
    """Yield private attributes and arguments that are not of our own classes."""
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inherited = node.attr in OF_STORES and node.attr not in defined
            if inherited or node.attr not in own:
                yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and is_private(node.arg or "") and node.arg not in own:
            yield f"{node.arg}="


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_private_modules_are_imported_in_one_place() -> None:
    found = {
        (path, name)
        for path, tree in trees().items()
        for library, name in private_imports(tree)
        if path != INTERNALS[library]
    }
    assert not found


def test_private_attributes_are_our_own() -> None:
    # what a class of ours sets, another of our modules may use
    own = frozenset(
        name
        for path, tree in trees().items()
        if path not in INTERNALS.values()
        for name in own_names(tree)
        if is_private(name)
    )
    found = {
        (path, name)
        for path, tree in trees().items()
        if path not in INTERNALS.values()
        for name in private_attributes(tree, own)
    }
    assert {name for _, name in found} <= DOCUMENTED, found


@pytest.mark.parametrize("library", ["dask", "xarray", "zarr"])
def test_the_one_module_is_needed(library: str) -> None:
    assert any(found == library for found, _ in private_imports(trees()[INTERNALS[library]]))
