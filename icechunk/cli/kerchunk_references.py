"""Commands for kerchunk references: import-kerchunk, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from icechunk import Repository
from icechunk.cli.options import (
    as_json,
    branch_option,
    chunk_repository,
    group_option,
    message_option,
    ref,
    remote_option,
    repository,
)
from icechunk.cli.output import done
from icechunk.kerchunk import export_references, import_references

__all__ = ["COMMANDS"]


@click.command(name="import-kerchunk")
@chunk_repository
@click.argument("references", metavar="REFERENCES")
@click.option(
    "-a",
    "--append",
    "append_dim",
    metavar="DIM",
    help="Append to the arrays that are there, along this dimension.",
)
@click.option("--overwrite", is_flag=True, help="Replace arrays that exist.")
@click.option(
    "--mask-fill-value/--no-mask-fill-value",
    default=None,
    help="Whether values equal to the fill value are missing. Default: unless they are zero.",
)
@click.option(
    "--drop-attribute",
    "drop_attributes",
    metavar="[VARIABLE:]NAME",
    multiple=True,
    help="Attribute to leave out everywhere, or in one variable. Repeatable.",
)
@click.option(
    "--verify",
    type=click.Choice(["sample", "all", "none"]),
    default="sample",
    show_default=True,
    help="Which chunks to decode before the commit, as far as files may be read.",
)
@remote_option
@group_option
@branch_option
@message_option
@as_json
def import_kerchunk(
    repo: Repository,
    references: str,
    remote_options: dict[str, Any],
    branch: str,
    message: str | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Import kerchunk references: JSON, compressed or not, or a Parquet store."""
    session = repo.writable_session(branch)
    report = import_references(
        references, session, remote_options=remote_options or None, **arguments
    )
    snapshot = session.commit(message or f"References of {Path(references).name}")
    line = f"{report!r}\ncommitted {snapshot}"
    done(as_json, line, branch=branch, snapshot=snapshot, report=report)


@click.command()
@repository
@click.argument("target", metavar="TARGET")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "parquet"]),
    default="json",
    show_default=True,
    help="Write one JSON file, or a folder of Parquet files for many references.",
)
@ref
@as_json
def export(
    repo: Repository, ref: str, target: str, form: Literal["json", "parquet"], as_json: bool
) -> None:
    """Write kerchunk references of a version to the path TARGET."""
    export_references(repo.readonly_session(ref=ref), target, format=form)
    done(as_json, f"wrote {target}", target=target, format=form)


COMMANDS: dict[str, Any] = {
    "export": export,
    "import-kerchunk": import_kerchunk,
}
