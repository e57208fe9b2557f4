"""Commands for branches and tags: branch, tag, reset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from icechunk import Repository
from icechunk.cli.options import as_json, confirm, repository, snapshot_of
from icechunk.cli.output import print_json, table, text

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


@click.command()
@repository
@click.argument("name", required=False)
@click.option("--at", metavar="REF", default="main", show_default=True, help="Where it begins.")
@click.option("-d", "--delete", is_flag=True, help="Delete it.")
@as_json
@confirm
def branch(
    repo: Repository,
    name: str | None,
    at: str,
    delete: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """List branches, or create or delete the branch NAME."""
    if name is None:
        _list(repo, {each: repo.lookup_branch(each) for each in repo.list_branches()}, as_json)
    elif delete:
        tip = repo.lookup_branch(name)
        ask(f"Delete the branch {name}, which is at {tip}?")
        repo.delete_branch(name)
        text(f"deleted branch {name}, which was at {tip}")
    else:
        tip = snapshot_of(repo, at)
        repo.create_branch(name, tip)
        text(f"created branch {name} at {tip}")


@click.command()
@repository
@click.argument("name", required=False)
@click.option("--at", metavar="REF", default="main", show_default=True, help="What it names.")
@click.option("-d", "--delete", is_flag=True, help="Delete it. Its name cannot be used again.")
@as_json
@confirm
def tag(
    repo: Repository,
    name: str | None,
    at: str,
    delete: bool,
    as_json: bool,
    ask: Callable[[str], None],
) -> None:
    """List tags, or create or delete the tag NAME."""
    if name is None:
        _list(repo, {each: repo.lookup_tag(each) for each in repo.list_tags()}, as_json)
    elif delete:
        target = repo.lookup_tag(name)
        ask(f"Delete the tag {name}, which names {target}? Its name cannot be used again.")
        repo.delete_tag(name)
        text(f"deleted tag {name}, which named {target}")
    else:
        target = snapshot_of(repo, at)
        repo.create_tag(name, target)
        text(f"created tag {name} at {target}")


@click.command()
@repository
@click.argument("branch")
@click.argument("to", metavar="REF")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and stop.")
@confirm
def reset(
    repo: Repository, branch: str, to: str, dry_run: bool, ask: Callable[[str], None]
) -> None:
    """Move the branch BRANCH to the version REF.

    Commits that no other branch or tag leads to are lost with the next collection.
    """
    tip = repo.lookup_branch(branch)
    target = snapshot_of(repo, to)
    if dry_run:
        text(f"{branch} would move from {tip} to {target}")
        return
    ask(f"Move {branch} from {tip} to {target}?")
    repo.reset_branch(branch, target, from_snapshot_id=tip)
    text(f"{branch} moved from {tip} to {target}")


COMMANDS: dict[str, Any] = {"branch": branch, "reset": reset, "tag": tag}
