"""What a package named `icechunk` offers: names, signatures, members, as plain values.

`surface` runs under both clients. The compiled classes of the official one say most by
introspection; what they do not, defaults that are objects and which properties can be set,
is read from the stub that lies beside them.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import icechunk

Description = dict[str, Any]

#: Special methods that somebody may rely on.
SPECIAL = ["__eq__", "__hash__", "__int__", "_repr_html_"]


def modules() -> list[str]:
    """Return the names of the public modules."""
    found = [module.name for module in pkgutil.walk_packages(icechunk.__path__, "icechunk.")]
    return ["icechunk", *(name for name in found if "._" not in name)]


def surface(names: list[str]) -> dict[str, Description]:
    """Return a description of each public name of modules, and of each member of a class.

    A module that cannot be imported, as it needs what is not installed, is only named.
    """
    found: dict[str, Description] = {}
    stub = _stub()
    for module_name in names:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                found[module_name] = {"kind": "module"}
            continue
        found[module_name] = {"kind": "module"}
        for name in _public(module):
            value = getattr(module, name)
            path = f"{module_name}.{name}"
            if f"icechunk.{name}" in found and value is getattr(icechunk, name):
                # the same object under another name is described once
                found[path] = {"kind": "alias"}
            else:
                found.update(_describe(path, value, stub))
    return found


def _public(module: types.ModuleType) -> list[str]:
    """Return what a module offers: what it lists, and else what it defines."""
    listed = getattr(module, "__all__", None)
    extra = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and callable(value)
    ]
    return sorted(name for name in {*(listed or ()), *extra} if hasattr(module, name))


def _describe(path: str, value: Any, stub: dict[str, Any]) -> Iterator[tuple[str, Description]]:
    if inspect.isclass(value):
        yield from _describe_class(path, value, stub, frozenset())
    elif callable(value) and not _is_union(value):
        yield path, _describe_function("function", value, stub.get(path.rpartition(".")[2]))
    else:
        yield path, {"kind": "value"}


def _is_union(value: Any) -> bool:
    return hasattr(value, "__args__")


def _describe_class(
    path: str, cls: type, stub: dict[str, Any], above: frozenset[type]
) -> Iterator[tuple[str, Description]]:
    inside = stub.get(cls.__name__, {})
    inside = inside if isinstance(inside, dict) else {}
    bases = [base.__name__ for base in cls.__mro__[1:-1]]
    description: Description = {"kind": "class"}
    if issubclass(cls, BaseException):
        description["bases"] = bases
    if not issubclass(cls, Enum):
        made_by = cls
        signature = _parameters(made_by, inside.get("__new__"))
        # made by the library: what its constructor takes is its own affair
        handles = {"store", "session", "repository"}
        if signature is not None and signature and signature[0][0] not in handles:
            description["parameters"] = signature
    yield path, {**description, "special": [name for name in SPECIAL if _has(cls, name)]}
    for name, member in sorted(_own(cls, above).items()):
        where = f"{path}.{name}"
        if name.startswith("_"):
            continue
        if inside and not inside.keys() & {name, f"{name} settable"}:
            yield where, {"kind": "not in the stub"}
            continue
        value = getattr(cls, name, None)
        if isinstance(value, cls):
            yield where, {"kind": "member", "value": _number(value)}
        elif inspect.isclass(value):
            yield from _describe_class(where, value, inside, above | {cls})
        elif inspect.isroutine(value):
            bound = value is not member
            kind = "class method" if bound else "method"
            yield where, _describe_function(kind, value, inside.get(name))
        else:
            yield where, {"kind": "attribute", "settable": _settable(cls, name, member, inside)}


def _own(cls: type, above: frozenset[type]) -> dict[str, Any]:
    """Return the members that neither Python, zarr nor a public base class brings."""
    public = {
        *above,
        *filter(
            inspect.isclass,
            [*vars(builtins).values(), *(getattr(icechunk, n) for n in dir(icechunk))],
        ),
    }
    foreign = {each for base in cls.__mro__[1:] if base in public for each in base.__mro__}
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base not in foreign and base.__module__.split(".")[0].partition("_")[0] in (
            "icechunk",
            "builtins",
        ):
            found.update(dict.fromkeys(vars(base).get("__annotations__", ())))
            found.update(vars(base))
            if is_dataclass(base):
                found.update({f.name: None for f in fields(base)})
    if issubclass(cls, Enum):
        found.update(cls.__members__)
    return found


def _has(cls: type, name: str) -> bool:
    value = getattr(cls, name, None)
    return value is not None and value is not getattr(object, name, None)


def _number(value: Any) -> int | str | None:
    inner = getattr(value, "value", None)
    if isinstance(inner, int | str):
        return inner
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _settable(cls: type, name: str, member: Any, inside: dict[str, Any]) -> bool:
    if isinstance(member, property):
        return member.fset is not None
    if is_dataclass(cls):
        return not cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return bool(inside.get(f"{name} settable"))


def _describe_function(kind: str, function: Any, stub: Any) -> Description:
    found: Description = {"kind": kind, "async": inspect.iscoroutinefunction(function)}
    parameters = _parameters(function, stub)
    if parameters is not None:
        found["parameters"] = parameters[1:] if kind == "method" else parameters
    return found


def _parameters(function: Any, stub: Any) -> list[list[str]] | None:
    """Return name, kind and default of each parameter; None if they are not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    defaults = stub if isinstance(stub, Defaults) else Defaults()
    found = []
    for name, parameter in signature.parameters.items():
        if "Unpack[" in str(parameter.annotation):
            # the names are in a TypedDict, which says no defaults
            (names,) = typing.get_args(typing.get_type_hints(function)[name])
            found += [[key, "keyword-only", "?"] for key in names.__annotations__]
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            shown = "required"
        elif default is Ellipsis:
            shown = defaults.get(name, "?")
        else:
            shown = str(default) if isinstance(default, Enum) else repr(default)
        found.append([name, parameter.kind.description, shown])
    return found


class Defaults(dict[str, str]):
    """The defaults of a function in the stub, by parameter."""


def _stub() -> dict[str, Any]:
    """Return what the stub of the compiled module says; nothing if there is none."""
    path = Path(icechunk.__file__ or "").with_name("_icechunk_python.pyi")
    return _read_stub(ast.parse(path.read_text(encoding="utf-8")).body) if path.exists() else {}


def _read_stub(body: list[ast.stmt]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _read_stub(node.body)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[f"{node.target.id} settable"] = True
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(getattr(mark, "attr", None) == "setter" for mark in node.decorator_list):
                found[f"{node.name} settable"] = True
                continue
            positional = [*node.args.posonlyargs, *node.args.args]
            defaults = Defaults()
            late = positional[len(positional) - len(node.args.defaults) :]
            pairs = [*zip(late, node.args.defaults, strict=True)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for argument, default in pairs:
                if default is not None:
                    defaults[argument.arg] = ast.unparse(default)
            found[node.name] = defaults
    return found
