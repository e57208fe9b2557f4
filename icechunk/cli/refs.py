"""Commands for branches and tags: branch, tag, reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from icechunk import Repository
from icechunk.cli import completing
from icechunk.cli.options import as_json, confirm, repository
from icechunk.cli.output import done, print_json, table

__all__ = ["COMMANDS"]


def _list(repo: Repository, found: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = []
    for name, snapshot_id in sorted(found.items()):
        commit = repo.lookup_snapshot(snapshot_id)
        rows.append((name, snapshot_id, commit.written_at, commit.message.partition("\n")[0]))
    table(rows, "name", "snapshot", "written (UTC)", "message")


def _command(kind: str, help: str, lost: str) -> click.Command:
    """Return the command for branches, or the one for tags."""
    plural = {"branch": "branches", "tag": "tags"}[kind]

    @click.command(name=kind, help=help)
    @repository
    @click.argument("name", required=False, shell_complete=completing.names(kind))
    @click.option(
        "--at",
        metavar="REF",
        default="main",
        show_default=True,
        shell_complete=completing.versions,
        help=f"Version at which to create the {kind}.",
    )
    @click.option("-d", "--delete", is_flag=True, help=f"Delete the {kind} NAME.{lost}")
    @as_json
    @confirm
    def command(
        repo: Repository,
        name: str | None,
        at: str,
        delete: bool,
        as_json: bool,
        ask: Callable[[str], None],
    ) -> None:
        if delete and name is None:
            raise click.UsageError(f"name the {kind} to delete")
        lookup = getattr(repo, f"lookup_{kind}")
        if name is None:
            found = {each: lookup(each) for each in getattr(repo, f"list_{plural}")()}
            _list(repo, found, as_json)
        elif delete:
            target = lookup(name)
            if (kind, name) != ("branch", "main"):  # which is refused
                ask(f"Delete the {kind} {name}, which is at {target}?{lost}")
            getattr(repo, f"delete_{kind}")(name)
            line = f"deleted {kind} {name}, which was at {target}"
            done(as_json, line, **{kind: name, "deleted": True, "snapshot": target})
        else:
            target = repo.resolve(at)
            getattr(repo, f"create_{kind}")(name, target)
            line = f"created {kind} {name} at {target}"
            done(as_json, line, **{kind: name, "deleted": False, "snapshot": target})

    return command


branch = _command("branch", "List branches, or create or delete the branch NAME.", "")
tag = _command(
    "tag",
    "List tags, or create or delete the tag NAME.",
    " Its name cannot be used again.",
)


@click.command()
@repository
@click.argument("branch", shell_complete=completing.branches)
@click.argument("to", metavar="REF", shell_complete=completing.versions)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@as_json
@confirm
def reset(
    repo: Repository,
    branch: str,
    to: str,
    dry_run: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """Move the branch BRANCH to the version REF.

    Commits that no other branch or tag leads to are lost with the next collection.
    """
    tip = repo.lookup_branch(branch)
    target = repo.resolve(to)
    told = {"branch": branch, "before": tip, "after": target, "moved": not dry_run}
    if tip == target:
        done(as_json, f"{branch} is at {tip} already", **{**told, "moved": False})
        return
    if dry_run:
        done(as_json, f"{branch} would move from {tip} to {target}", **told)
        return
    ask(f"Move {branch} from {tip} to {target}?")
    repo.reset_branch(branch, target, from_snapshot_id=tip)
    done(as_json, f"{branch} moved from {tip} to {target}", **told)


COMMANDS: dict[str, Any] = {"branch": branch, "reset": reset, "tag": tag}
