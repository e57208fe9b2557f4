"""Arguments that commands share: the repository, its storage options, the version."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from icechunk import InvalidInputError, Repository, Storage, storage_from_url
from icechunk.cli import completing
from icechunk.config.times import instant
from icechunk.storage import version_url

__all__ = [
    "as_json",
    "branch_option",
    "confirm",
    "group_option",
    "message_option",
    "named_values",
    "ref",
    "repository",
    "storage",
    "when",
]

Command = Callable[..., Any]


def _value(text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), text)


def named_values(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    """Return options of a storage as they were given: NAME=VALUE."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            # what was passed may be a secret without its name
            raise click.BadParameter("what was passed is not NAME=VALUE")
        found[name] = _value(text)
    return found


_storage_option = click.option(
    "-o",
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=named_values,
    help="Option of the storage. Repeatable.",
)


def storage(command: Command) -> Command:
    """Give a command a storage, made of its argument REPO and of storage options."""

    @click.argument("repo", metavar="REPO", shell_complete=completing.folders)
    @_storage_option
    @functools.wraps(command)
    def with_storage(repo: str, options: dict[str, Any], **others: Any) -> Any:
        return command(_storage(repo, options), **others)

    return with_storage


def repository(command: Command) -> Command:
    """Give a command an open repository.

    REPO may be a URL that names a version and a path, for commands that take both.
    """

    @click.argument("repo", metavar="REPO", shell_complete=completing.folders)
    @_storage_option
    @functools.wraps(command)
    def with_repository(repo: str, options: dict[str, Any], **others: Any) -> Any:
        named = version_url(repo)
        if named is not None:
            if named.ref is not None:
                _take(others, "ref", named.ref)
            if named.path:
                _take(others, "path", named.path)
            repo = named.storage
        return command(Repository.open(_storage(repo, options)), **others)

    return with_repository


def _take(arguments: dict[str, Any], name: str, value: str) -> None:
    """Set an argument to what a URL says of it."""
    if name not in arguments:
        raise click.UsageError(f"REPO names a {name}, {value}, and this command takes none")
    source = click.get_current_context().get_parameter_source(name)
    if source is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError(f"REPO names the {name} {value}, and {arguments[name]!r} was given")
    arguments[name] = value


def _storage(repo: str, options: dict[str, Any]) -> Storage:
    place: Storage = storage_from_url(repo, **options)
    return place


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ref = click.option(
    "-r",
    "--ref",
    default="main",
    show_default=True,
    shell_complete=completing.versions,
    help="Branch, tag, id, main~2 or main@2024-05-01. REPO|icechunk:@tag.v1 names one, too.",
)
group_option = click.option("-g", "--group", default="/", show_default=True)
branch_option = click.option(
    "-b", "--branch", default="main", show_default=True, shell_complete=completing.branches
)
message_option = click.option("-m", "--message", help="Of the commit.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(command: Command) -> Command:
    """Give a command the option ``--yes``, without which it asks before it acts."""

    @_yes
    @functools.wraps(command)
    def asking(*args: Any, yes: bool, **others: Any) -> Any:
        def ask(question: str) -> None:
            if not yes:
                click.confirm(question, abort=True, err=True)

        return command(*args, ask=ask, **others)

    return asking


class When(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A time: a date, a date with a time, or so long ago: ``30d``, ``12h``, ``15m``."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time in UTC."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        units = {"d": "days", "h": "hours", "m": "minutes", "w": "weeks"}
        if text[:-1].isdigit() and text[-1:] in units:
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: int(text[:-1])})
        try:
            return instant(text, "the time")
        except InvalidInputError:
            self.fail(
                f"{text!r} is not a time; write 2024-05-01, 2024-05-01T12:00 or 30d (30 days ago)",
                param,
                ctx,
            )


when = When()
