"""The command repair: make a damaged repository usable again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from icechunk import Repository, Storage
from icechunk.cli.advice import in_options
from icechunk.cli.options import as_json, confirm, storage
from icechunk.cli.output import print_json, text

__all__ = ["COMMANDS"]


def _adopted(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in given:
        branch, equals, id = item.rpartition("=")
        if not equals or not branch:
            raise click.BadParameter(f"{item!r} is not BRANCH=ID")
        found[branch] = id
    return found


@click.command()
@storage
@click.option("-b", "--branch", help="Look at the newest version of this branch, too.")
@click.option(
    "--drop-unreadable",
    is_flag=True,
    help="Commit to --branch a version without what cannot be read.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Decode all chunks of the newest version of --branch; damaged ones are unreadable, too.",
)
@click.option(
    "--adopt",
    metavar="BRANCH=ID",
    multiple=True,
    callback=_adopted,
    help="Put the branch on a commit that the restored state does not know. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@as_json
@confirm
def repair(
    place: Storage,
    branch: str | None,
    drop_unreadable: bool,
    deep: bool,
    adopt: dict[str, str],
    dry_run: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """Restore the object that names all versions, and what can be of a branch.

    Nothing is dropped unless --drop-unreadable says so. What is dropped reads as fill values.
    """
    how: dict[str, Any] = {
        "branch": branch,
        "drop_unreadable": drop_unreadable,
        "deep": deep,
        "adopt": adopt,
    }
    found = Repository.repair(place, **how)
    if not dry_run and found.is_needed:
        if not as_json:
            text(in_options(repr(found), None))
        ask(f"Repair {place.url} like that?")
        found = Repository.repair(place, **how, dry_run=False)
    if as_json:
        print_json(found.to_dict())
    else:
        text(in_options(repr(found), None))


COMMANDS: dict[str, Any] = {"repair": repair}
