"""Commands that create and look after repositories."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from icechunk import (
    ErrorKind,
    InvalidInputError,
    Repository,
    RepositoryConfig,
    Storage,
    VirtualChunkContainer,
    suggest_containers,
    upgrade_icechunk_repository,
)
from icechunk.base.public_url import public_url
from icechunk.base.texts import counted
from icechunk.cli.options import (
    as_json,
    as_prefix,
    branch_option,
    confirm,
    repository,
    storage,
    when,
)
from icechunk.cli.output import done, error_console, fields, print_json, size, text

__all__ = ["COMMANDS"]

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would happen, and change nothing."
)


@click.command()
@storage
@click.option(
    "--spec-version",
    type=click.Choice(["1", "2"]),
    default="2",
    show_default=True,
    help="Version of the format; 1 is for official clients 1.x.",
)
@as_json
def create(place: Storage, spec_version: str, as_json: bool) -> None:
    """Make a new, empty repository."""
    repo = Repository.create(place, spec_version=int(spec_version))
    url = repo.storage.url
    done(
        as_json,
        f"created {url}, spec {spec_version}",
        storage=url,
        spec_version=int(spec_version),
    )


def _containers(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> list[VirtualChunkContainer]:
    """Return containers by their prefixes; all or none are stored."""
    found: list[VirtualChunkContainer] = []
    for prefix in map(as_prefix, given):
        try:
            found += suggest_containers([f"{prefix}file"])
        except InvalidInputError as error:
            if error.kind is not ErrorKind.STORAGE_CONFIG:
                raise
            raise click.BadParameter(
                f"{public_url(prefix)!r} begins with none of file, s3, tigris, gs, http, https; "
                "a container on Azure needs its account, and can be stored in Python only"
            ) from error
    return found


@click.command()
@repository
@click.option(
    "--add-container",
    "containers",
    metavar="PREFIX",
    multiple=True,
    callback=_containers,
    help="Store that virtual chunks may be in files below a URL or folder. Repeatable.",
)
@as_json
def config(repo: Repository, containers: list[VirtualChunkContainer], as_json: bool) -> None:
    """Show the configuration that is stored with a repository, or add containers to it."""
    for container in containers:
        changed = RepositoryConfig()
        changed.virtual_chunk_containers = dict(repo.config.virtual_chunk_containers or {})
        changed.set_virtual_chunk_container(container)
        repo = repo.reopen(changed)
        repo.save_config()
    if as_json:
        print_json(repo.config.to_dict())
    else:
        text(repr(repo.config))


@click.command()
@repository
@dry_run_option
@as_json
@confirm
def upgrade(repo: Repository, dry_run: bool, as_json: bool, ask: Callable[[str], None]) -> None:
    """Turn a repository of spec 1 into spec 2. Official clients 1.x cannot read it then."""
    if not dry_run:
        # what cannot be upgraded is refused before the question
        upgrade_icechunk_repository(repo, dry_run=True)
        ask(f"Upgrade {repo.storage.url} to spec 2? Clients 1.x will not be able to read it.")
    upgrade_icechunk_repository(repo, dry_run=dry_run)
    line = "nothing was changed: the upgrade would work" if dry_run else "upgraded to spec 2"
    done(as_json, line, upgraded=not dry_run)


@click.command()
@repository
@branch_option
@click.option(
    "-m", "--message", default="Rewrite manifests", show_default=True, help="Commit message."
)
@as_json
def rewrite(repo: Repository, branch: str, message: str, as_json: bool) -> None:
    """Rewrite the manifests of a branch, split as the configuration says now."""
    snapshot = repo.rewrite_manifests(message, branch=branch)
    done(as_json, f"committed {snapshot}", branch=branch, snapshot=snapshot)


@click.command()
@repository
@click.option(
    "--older-than",
    type=when,
    required=True,
    help="Age or time: 30d, 12h, 2024-05-01, 2024-05-01T12:00.",
)
@click.option("--branches", is_flag=True, help="Delete branches whose newest commit expires.")
@click.option("--tags", is_flag=True, help="Delete tags whose commit expires.")
@dry_run_option
@as_json
@confirm
def expire(
    repo: Repository,
    older_than: datetime,
    branches: bool,
    tags: bool,
    dry_run: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """Remove commits older than a time from the history. `gc` deletes their data."""
    if dry_run:
        told = repo.preview_expiration(
            older_than, delete_expired_branches=branches, delete_expired_tags=tags
        )
        if as_json:
            print_json(told)
            return
        text(f"{counted(len(told.snapshots), 'commit')} would expire, and a collection would free:")
        fields(
            {
                "bytes": size(told.bytes_freed),
                "chunks": told.chunks_freed,
                "branches": told.branches or None,
                "tags": told.tags or None,
            }
        )
        return
    ask(f"Remove commits before {older_than:%Y-%m-%d %H:%M} UTC from the history?")
    expired = repo.expire_snapshots(
        older_than, delete_expired_branches=branches, delete_expired_tags=tags
    )
    if as_json:
        print_json({"expired": expired})
    else:
        gone = counted(len(expired), "commit")
        text(f"{gone} expired; `icechunk gc` deletes what they alone refer to")


@click.command()
@repository
@click.option(
    "--older-than",
    type=when,
    required=True,
    help="Age or time: 2d, 12h, 2024-05-01, 2024-05-01T12:00.",
)
@click.option(
    "--incremental", is_flag=True, help="Look only at what has changed since the last such run."
)
@dry_run_option
@as_json
@confirm
def gc(
    repo: Repository,
    older_than: datetime,
    incremental: bool,
    dry_run: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """Delete what no branch or tag leads to, and is older than a time.

    Sessions that began before that time must not commit any more.
    """
    if not dry_run:
        ask(f"Delete unused objects written before {older_than:%Y-%m-%d %H:%M} UTC?")
    with error_console().status("") as status:
        found = repo.garbage_collect(
            older_than,
            dry_run=dry_run,
            incremental=incremental,
            progress=lambda what, done, total: status.update(
                f"{what.replace('_', ' ')}: {done:,}" + (f" of {total:,}" if total else "")
            ),
        )
    if as_json:
        print_json(found)
        return
    text("would be deleted:" if dry_run else "deleted:")
    fields(
        {
            "bytes": size(found.bytes_deleted),
            "chunks": found.chunks_deleted,
            "manifests": found.manifests_deleted,
            "snapshots": found.snapshots_deleted,
            "transaction logs": found.transaction_logs_deleted,
            "kept, too young": sum(each["young"] for each in found.kept.values()),
        }
    )
    for reason in found.reasons:
        text(f"objects since {found.since:%Y-%m-%d %H:%M:%S} UTC stay: {reason}")
    if found.objects_failed_to_delete:
        failed = counted(found.objects_failed_to_delete, "object was", "objects were")
        raise click.ClickException(f"{failed} not deleted")


@click.command()
@repository
@as_json
def stats(repo: Repository, as_json: bool) -> None:
    """Show how much the chunks of all versions take."""
    found = repo.chunk_storage_stats()
    if as_json:
        print_json(found)
        return
    fields(
        {
            "native": size(found.native_bytes),
            "inline": size(found.inlined_bytes),
            "virtual": f"{size(found.virtual_bytes)} in other files",
            "stored here": size(found.non_virtual_bytes()),
        }
    )


COMMANDS: dict[str, Any] = {
    "config": config,
    "create": create,
    "expire": expire,
    "gc": gc,
    "rewrite": rewrite,
    "stats": stats,
    "upgrade": upgrade,
}
