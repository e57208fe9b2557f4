"""Commands that look at the history: info, log, show, diff, ops, inspect."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import suppress
from typing import Any

import click

from icechunk import Diff, RefNotFoundError, Repository
from icechunk.cli import completing
from icechunk.cli.options import as_json, ref, repository
from icechunk.cli.output import fields, print_json, table, text

__all__ = ["COMMANDS"]

number = click.option(
    "-n",
    "--number",
    type=click.IntRange(1),
    help="Show so many of the newest, at most. Default: all.",
)


@click.command()
@repository
@as_json
def info(repo: Repository, as_json: bool) -> None:
    """Show branches, tags and format of a repository."""
    newest = {name: repo.lookup_branch(name) for name in sorted(repo.list_branches())}
    told: dict[str, Any] = {
        "storage": repo.storage.url,
        "spec_version": int(repo.spec_version),
        "branches": newest,
        "tags": {name: repo.lookup_tag(name) for name in sorted(repo.list_tags())},
    }
    if told["spec_version"] > 1:
        told["status"] = repo.status.availability.name
        told["metadata"] = repo.metadata
    if as_json:
        print_json(told)
        return
    fields({key: told[key] for key in ("storage", "spec_version", "status") if key in told})
    rows = []
    for kind in ("branches", "tags"):
        for name, snapshot_id in told[kind].items():
            commit = repo.lookup_snapshot(snapshot_id)
            word = {"branches": "branch", "tags": "tag"}[kind]
            rows.append((word, name, snapshot_id, commit.written_at, _first_line(commit.message)))
    text()
    table(rows, "", "name", "snapshot", "written (UTC)", "message")


@click.command()
@repository
@click.option(
    "--graph", is_flag=True, help="Draw the history of all branches, or of --ref if it is given."
)
@number
@ref
@as_json
def log(repo: Repository, ref: str, number: int | None, graph: bool, as_json: bool) -> None:
    """List the commits of a version, newest first."""
    if graph:
        _log_graph(repo, None if _is_default("ref") else ref, number, as_json)
        return
    found = itertools.islice(repo.ancestry(snapshot_id=repo.resolve(ref)), number)
    if as_json:
        print_json(list(found))
        return
    table(
        ((each.id, each.written_at, _first_line(each.message)) for each in found),
        "snapshot",
        "written (UTC)",
        "message",
    )


def _is_default(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.DEFAULT


def _log_graph(repo: Repository, ref: str | None, number: int | None, as_json: bool) -> None:
    if ref is None:
        drawn = repo.ancestry_graph(plain=True)
    elif ref in repo.list_branches():
        drawn = repo.ancestry_graph(branch=ref, plain=True)
    else:
        drawn = repo.ancestry_graph(snapshot_id=repo.resolve(ref), plain=True)
    if as_json:
        print_json(
            [
                {**dataclasses.asdict(commit), "branches": branches, "tags": tags}
                for commit, branches, tags in itertools.islice(drawn.commits(), number)
            ]
        )
    else:
        text(drawn.dated(number))


@click.command()
@repository
@ref
@as_json
def show(repo: Repository, ref: str, as_json: bool) -> None:
    """Show one commit, and what it changed."""
    commit = repo.lookup_snapshot(repo.resolve(ref))
    diff = Diff()
    if commit.parent_id is not None:
        diff = repo.diff(from_snapshot_id=commit.parent_id, to_snapshot_id=commit.id)
    if as_json:
        print_json({"commit": commit, "changes": diff})
        return
    fields(
        {
            "snapshot": commit.id,
            "parent": commit.parent_id,
            "written (UTC)": commit.written_at,
            **{f"metadata {name}": value for name, value in commit.metadata.items()},
        }
    )
    text()
    text(commit.message)
    text()
    _print_diff(diff)


@click.command()
@repository
@click.option("--exit-code", is_flag=True, help="Exit with status 1 if there are differences.")
@click.option(
    "--from",
    "from_",
    required=True,
    metavar="REF",
    help="Version to compare with, an ancestor of the other.",
    shell_complete=completing.versions,
)
@click.option(
    "--to",
    default="main",
    show_default=True,
    metavar="REF",
    help="Version whose changes to show.",
    shell_complete=completing.versions,
)
@as_json
def diff(repo: Repository, from_: str, to: str, as_json: bool, exit_code: bool) -> None:
    """Show what differs between two versions."""
    found = repo.diff(from_snapshot_id=repo.resolve(from_), to_snapshot_id=repo.resolve(to))
    if as_json:
        print_json(found)
    else:
        _print_diff(found)
    if exit_code and not found.is_empty():
        click.get_current_context().exit(1)


@click.command()
@repository
@number
@as_json
def ops(repo: Repository, number: int | None, as_json: bool) -> None:
    """List the operations on a repository, newest first."""
    found = itertools.islice(repo.ops_log(), number)
    if as_json:
        print_json(
            [
                {
                    "operation": type(each.kind).__name__,
                    "updated_at": each.updated_at,
                    "details": each.kind,
                }
                for each in found
            ]
        )
        return
    table(((each.updated_at, str(each.kind)) for each in found), "when (UTC)", "operation")


@click.command()
@repository
@click.argument("kind", type=click.Choice(["repo", "snapshot", "manifest", "transactions"]))
@click.argument("object_id", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Has no effect: the output is JSON in any case."
)
def inspect(repo: Repository, kind: str, object_id: str | None, as_json: bool) -> None:
    """Print what a stored object says, as JSON.

    The id of the object is that of a manifest, or names a version, for its snapshot or transaction
    log: an id, a branch, a tag, main~2.
    """
    if kind == "repo":
        print_json(repo.inspect_repo_info())
        return
    if object_id is None:
        raise click.UsageError(f"say which {kind}: its id is missing")
    if kind != "manifest":
        # a version outside the history can still be inspected by its id
        with suppress(RefNotFoundError):
            object_id = repo.resolve(object_id)
    look = {
        "snapshot": repo.inspect_snapshot,
        "manifest": repo.inspect_manifest,
        "transactions": repo.inspect_transaction_log,
    }[kind]
    print_json(look(object_id))


def _first_line(message: str) -> str:
    return message.partition("\n")[0]


def _print_diff(diff: Diff) -> None:
    if diff.is_empty():
        text("no changes")
        return
    rows: list[tuple[str, str, Any]] = []
    for word, paths in (
        ("new group", diff.new_groups),
        ("new array", diff.new_arrays),
        ("deleted group", diff.deleted_groups),
        ("deleted array", diff.deleted_arrays),
        ("metadata", diff.updated_groups | diff.updated_arrays),
    ):
        rows += [(word, path, None) for path in sorted(paths)]
    rows += [("moved", f"{old} -> {new}", None) for old, new in diff.moved_nodes]
    rows += [("chunks", path, len(chunks)) for path, chunks in sorted(diff.updated_chunks.items())]
    table(rows, "change", "path", "chunks")


COMMANDS = {
    "diff": diff,
    "info": info,
    "inspect": inspect,
    "log": log,
    "ops": ops,
    "show": show,
}
