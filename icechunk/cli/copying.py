"""Commands that copy versions elsewhere, and say who changed what: copy, annotate."""

from __future__ import annotations

import re
from typing import Any

import click

from icechunk import Repository, storage_from_url
from icechunk.base.texts import counted
from icechunk.cli import completing
from icechunk.cli.options import as_json, named_values, ref, repository
from icechunk.cli.output import error_console, print_json, size, table, text

__all__ = ["COMMANDS"]


@click.command()
@repository
@click.argument("target", shell_complete=completing.folders)
@ref
@click.option(
    "-b",
    "--branch",
    help="Branch of TARGET that gets the version. Default: the one that --ref names, or main.",
)
@click.option("--no-history", is_flag=True, help="Copy only this version, and none before it.")
@click.option(
    "--to-option",
    "to_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=named_values,
    help="Option of the storage of TARGET. Repeatable.",
)
@as_json
def copy(
    repo: Repository,
    target: str,
    ref: str,
    branch: str | None,
    no_history: bool,
    to_options: dict[str, Any],
    as_json: bool,
) -> None:
    """Copy a version with its history and its chunks to TARGET, another repository.

    Objects that exist there are skipped, so an interrupted copy can be resumed.
    """
    with error_console().status("") as status:
        found = repo.copy_to(
            storage_from_url(target, **to_options),
            ref,
            branch=branch,
            history=not no_history,
            progress=lambda what, done, count: status.update(f"{what}: {done:,} of {count:,}"),
        )
    if as_json:
        print_json(found)
        return
    text(
        f"{found.branch} of {found.url} is at {found.snapshot_id}: "
        f"{counted(found.snapshots, 'version')}, "
        f"{counted(found.objects, 'object')} with {size(found.nbytes)} copied, {found.skipped} "
        f"were there"
    )


def _region(ctx: click.Context, param: click.Parameter, given: str | None) -> Any:
    if given is None:
        return None
    if not re.fullmatch(r"\d+:\d+(,\d+:\d+)*", given):
        raise click.BadParameter(f"{given!r} is not a box of chunks such as 0:4,2:3")
    return [tuple(map(int, axis.split(":"))) for axis in given.split(",")]


@click.command()
@repository
@click.argument("path", shell_complete=completing.paths)
@ref
@click.option(
    "-c",
    "--chunks",
    "region",
    metavar="I:J,...",
    callback=_region,
    help="Look only at these chunks, a range for each dimension: 0:4,2:3.",
)
@as_json
def annotate(repo: Repository, path: str, ref: str, region: Any, as_json: bool) -> None:
    """Show which commit last changed each chunk of the array PATH."""
    found = repo.annotate(path, ref, region=region)
    if as_json:
        print_json(found.to_dict())
        return
    if found.metadata is not None:
        text(f"zarr.json: {found.metadata.id} {found.metadata.message.partition(chr(10))[0]}")
    rows = [(id, time, count, box, told) for id, time, told, count, box in found.rows()]
    table(rows, "commit", "written (UTC)", "chunks", "where", "message")


COMMANDS: dict[str, Any] = {"annotate": annotate, "copy": copy}
