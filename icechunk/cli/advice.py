"""What errors advise, in the words of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

import click

__all__ = ["METHODS", "in_options"]

#: Phrases that the command line has other words for.
_PHRASES: Final = (
    (
        r"open the repository with authorize_virtual_chunk_access=\{('[^']*'): [^}]*\}",
        r"pass --authorize-virtual-chunk-access \1, or \1=anonymous for public data",
    ),
    (
        r"open the repository with (?:it|the container) as yours, "
        r"config=Repository\.fetch_config\(storage\)",
        "pass --trust-config",
    ),
    (
        r"add one to its configuration: config\.set_virtual_chunk_container\("
        r"icechunk\.VirtualChunkContainer\(('[^']*').*",
        r"add one with icechunk config REPO --add-container \1",
    ),
    (r",? or get_credentials=\.\.\.", ""),
    (
        r"wait longer with RepositoryConfig\(storage=StorageSettings\(timeouts=.*\)\)\)",
        "try again",
    ),
    (r"; a longer one can be set with icechunk\.time_limit", ""),
    (r"(?:Repository|repo)\.jobs\.delete\(('[^']*'|name)\)", r"icechunk jobs REPO \1 --delete"),
    (r"pass repo\.resolve\('([^']*)'\)", r"icechunk show REPO -r \1 says its id"),
    (r"; use readonly_session\b", ""),
    (r"open it with engine='zarr', or with zarr\.open", "xarray and Zarr open it"),
    (r"datetime\.now\(UTC\) - timedelta\([^)]*\)", "30d"),
    (r"adopt=\{branch: id\}", "--adopt BRANCH=ID"),
    (r"pass it as ref= or path where one is taken; .*", "name it with --ref where there is one"),
    (r"; what is read from a file ends with one: pass text\.strip\(\)", ""),
    (r"create one with Repository\.create", "make one with icechunk create"),
    (r"open it with Repository\.open", "icechunk info shows it"),
    (r", or pass check_clean_root=False", ""),
    (r"^(?:r2|tigris)_storage: ", ""),
)
#: Methods and functions, and the commands that do the same.
METHODS: Final[Mapping[str, str]] = {
    "Repository.create": "icechunk create",
    "Repository.garbage_collect": "icechunk gc",
    "Repository.open": "icechunk info",
    "Repository.repair": "icechunk repair",
    "Repository.reset_branch": "icechunk reset",
    "Repository.verify": "icechunk verify",
    "garbage_collect": "icechunk gc",
    "icechunk_dask.ingest": "icechunk ingest",
    "icechunk_dask.virtualize": "icechunk virtualize",
    "icechunk.upgrade_icechunk_repository": "icechunk upgrade",
    "reset_branch": "icechunk reset",
}
_ARGUMENT: Final = re.compile(
    r"(?<![\w.{'\"&?/-])(?P<name>[a-z]\w+)"
    r"=(?P<value>\.\.\.|'[^']*'|\[[^\]]*\]|\{[^{}]*\}|[\w.]+(?:\([^()]*\))?)?(?![\w=/])"
)
#: What is left of Python: objects of its API, calls, and arguments.
_PYTHON: Final = re.compile(
    r"\b(?:Repository|RepositoryConfig|Session|icechunk(?:_dask|_xarray)?|config|repo|session)"
    r"\.[a-z_]\w+|\b[A-Z]\w+\(|(?<![\w.{'\"&?/-])(?<!-o )[a-z]\w*_\w+="
    r"|(?<=pass )[a-z]+=|\b(?:readonly_session|writable_session|remove_files)\b"
)
_NOTE: Final = " (What is Python here has no counterpart on the command line.)"


def in_options(message: str, command: click.Command | None) -> str:
    """Return an error with options and commands in place of what it advises for Python.

    Parameters
    ----------
    message : str
    command : click.Command, optional
        Whose arguments are advised. Options of the storage are passed with ``-o``.

    Examples
    --------
    >>> in_options("create one with Repository.create", None)
    'make one with icechunk create'
    """
    for phrase, words in _PHRASES:
        message = re.sub(phrase, words, message)
    for method, words in METHODS.items():
        message = re.sub(rf"(?<![\w.]){re.escape(method)}\b(?:\([^()]*\))?", words, message)
    parameters = {} if command is None else {p.name: p for p in command.params if p.name}
    stored = _storage_options() if "options" in parameters else frozenset()

    def option(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"] or "..."
        parameter = parameters.get(name)
        if isinstance(parameter, click.Option):
            return _option(parameter, value)
        if name in stored:
            return f"-o {name}={_plain(value)}"
        return found[0]

    message = _ARGUMENT.sub(option, message)
    for name in stored:
        message = re.sub(rf"(?:(?<=pass )|(?<=or )){name}\b(?!=)", f"-o {name}=...", message)
    for name, parameter in parameters.items():
        if "_" in name and isinstance(parameter, click.Option):
            message = re.sub(rf"(?<![\w.-]){name}\b(?!=)", max(parameter.opts, key=len), message)
    if "pip install" in message or not _PYTHON.search(message):
        return message
    return message + _NOTE


def _option(option: click.Option, text: str) -> str:
    flag = max(option.opts, key=len)
    value = _value(text)
    if option.is_flag:
        return f"no {flag}" if value is False else flag
    if isinstance(value, Mapping):
        value = [f"{name}={item}" for name, item in value.items()]
    if text == "...":
        value = option.metavar or "..."
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{flag} {_quoted(item)}" for item in values)


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text == "..." or text.isupper() else shlex.quote(text)


def _plain(text: str) -> str:
    value = _value(text)
    return str(value).lower() if isinstance(value, bool) else _quoted(value)


def _value(text: str) -> Any:
    try:
        return text if text == "..." else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _storage_options() -> frozenset[str]:
    from icechunk.storage.urls import option_names

    return option_names()
