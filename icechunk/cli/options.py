"""Arguments that commands share: the repository, its storage options, the version."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from icechunk import (
    InvalidInputError,
    ReadOnlyError,
    Repository,
    Storage,
    azure_from_env_credentials,
    gcs_from_env_credentials,
    s3_anonymous_credentials,
    s3_from_env_credentials,
    storage_from_url,
)
from icechunk.base.public_url import public_url
from icechunk.cli import completing
from icechunk.commit.publish import require_online
from icechunk.config.times import instant
from icechunk.credentials import (
    HttpAccess,
    LocalFileSystemAccess,
    azure_anonymous_credentials,
    gcs_anonymous_credentials,
)
from icechunk.errors import ErrorKind
from icechunk.storage import version_url

__all__ = [
    "access_option",
    "as_json",
    "as_prefix",
    "branch_option",
    "chunk_repository",
    "confirm",
    "group_option",
    "location",
    "message_option",
    "named_values",
    "ref",
    "remote_option",
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
            # the text may be a secret that was passed without its name
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
    help="Option of the storage of REPO. Repeatable.",
)


remote_option = click.option(
    "--remote-option",
    "remote_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=named_values,
    help="Option for reading the files, if they need others than -o. Repeatable.",
)


def location(command: Command) -> Command:
    """Add the argument REPO and the storage options to a command."""

    @click.argument("repo", metavar="REPO", shell_complete=completing.folders)
    @_storage_option
    @functools.wraps(command)
    def with_location(repo: str, options: dict[str, Any], **others: Any) -> Any:
        return command(repo=repo, options=options, **others)

    return with_location


def storage(command: Command) -> Command:
    """Pass a command the storage that REPO and the storage options describe."""

    @functools.wraps(command)
    def with_storage(repo: str, options: dict[str, Any], **others: Any) -> Any:
        return command(_storage(repo, options), **others)

    return location(with_storage)


def as_prefix(place: str) -> str:
    """Return the URL of a folder, with a slash at its end."""
    if "://" not in place:
        place = Path(place).expanduser().absolute().as_uri()
    return f"{place.rstrip('/')}/"


def _authorized(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return credentials by prefix, as `Repository.open` takes them."""
    found: dict[str, Any] = {}
    for item in given:
        prefix, _, way = item.rpartition("=")
        if way not in ("anonymous", "env"):
            prefix, way = item, "env"
        if "://" not in prefix:
            prefix = as_prefix(prefix)
        scheme = prefix.partition("://")[0]
        if scheme not in _CREDENTIALS:
            raise click.BadParameter(
                f"{public_url(prefix)!r} begins with none of {', '.join(_CREDENTIALS)}"
            )
        found[prefix] = _CREDENTIALS[scheme](way == "anonymous")
    return found or None


def _s3(anonymous: bool) -> Any:
    return s3_anonymous_credentials() if anonymous else s3_from_env_credentials()


def _gcs(anonymous: bool) -> Any:
    return gcs_anonymous_credentials() if anonymous else gcs_from_env_credentials()


def _azure(anonymous: bool) -> Any:
    return azure_anonymous_credentials() if anonymous else azure_from_env_credentials()


#: By scheme: makes credentials from the environment, or for anonymous requests.
_CREDENTIALS: Final[dict[str, Callable[[bool], Any]]] = {
    "file": lambda anonymous: LocalFileSystemAccess,
    "s3": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "az": _azure,
    "azure": _azure,
    "abfs": _azure,
    "http": lambda anonymous: HttpAccess,
    "https": lambda anonymous: HttpAccess,
}
access_option = click.option(
    "--authorize-virtual-chunk-access",
    metavar="PREFIX[=anonymous]",
    multiple=True,
    callback=_authorized,
    help="Read virtual chunks below a URL or folder, with credentials of the environment or "
    "none. Repeatable.",
)
_trust_option = click.option(
    "--trust-config",
    is_flag=True,
    help="Send credentials to the endpoints that the stored configuration names.",
)


def chunk_repository(command: Command) -> Command:
    """Pass a command an open repository whose virtual chunks can be read, where allowed."""
    return access_option(_trust_option(repository(command)))


def repository(command: Command) -> Command:
    """Pass a command an open repository.

    REPO may be a URL that names a version and a path, for commands that take both.
    """

    @functools.wraps(command)
    def with_repository(
        repo: str,
        options: dict[str, Any],
        authorize_virtual_chunk_access: dict[str, Any] | None = None,
        trust_config: bool = False,
        **others: Any,
    ) -> Any:
        named = version_url(repo)
        if named is not None:
            if named.ref is not None:
                _take(others, "ref", named.ref)
            if named.path:
                _take(others, "path", named.path)
            repo = named.storage
        place = _storage(repo, options)
        config = Repository.fetch_config(place) if trust_config else None
        return command(Repository.open(place, config, authorize_virtual_chunk_access), **others)

    return location(with_repository)


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


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
ref = click.option(
    "-r",
    "--ref",
    default="main",
    show_default=True,
    shell_complete=completing.versions,
    help="Version: a branch, a tag, an id, main~2 or main@2024-05-01. In a URL: "
    "REPO|icechunk:@tag.v1.",
)
group_option = click.option(
    "-g", "--group", default="/", show_default=True, help="Group of the dataset."
)
branch_option = click.option(
    "-b",
    "--branch",
    default="main",
    show_default=True,
    shell_complete=completing.branches,
    help="Branch that gets the commit.",
)
message_option = click.option("-m", "--message", help="Commit message.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")


def _check_writable(place: object) -> None:
    """Refuse a storage or a repository that cannot be written; anything else passes.

    Raises
    ------
    ReadOnlyError
    """
    storage = place.storage if isinstance(place, Repository) else place
    if isinstance(storage, Storage) and not storage.supports_writes:
        raise ReadOnlyError(f"{storage.url} cannot be written", ErrorKind.READ_ONLY_STORAGE)
    if isinstance(place, Repository):
        require_online(place.context.state.load())


def confirm(command: Command) -> Command:
    """Add the option ``--yes`` to a command; without it, the command asks before it acts."""

    @_yes
    @functools.wraps(command)
    def asking(*args: Any, yes: bool, **others: Any) -> Any:
        def ask(question: str) -> None:
            if not yes:
                # nobody is asked for what is refused then
                for each in (*args, *others.values()):
                    _check_writable(each)
                click.confirm(question, abort=True, err=True)

        return command(*args, ask=ask, **others)

    return asking


class When(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A time: a date, a date with a time, or an age: ``30d``, ``12h``, ``15m``."""

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
