"""Commands for data in other files: virtualize, import-kerchunk, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from icechunk import Repository, Storage
from icechunk.cli.options import ref, repository, storage
from icechunk.cli.output import text
from icechunk.kerchunk import export_references, import_references

__all__ = ["COMMANDS"]

group_option = click.option("-g", "--group", default="/", show_default=True)
branch_option = click.option("-b", "--branch", default="main", show_default=True)
message_option = click.option("-m", "--message", help="Of the commit.")


@click.command()
@storage
@click.argument("urls", metavar="FILES...", nargs=-1, required=True)
@click.option(
    "-d", "--dim", "dims", multiple=True, default=("time",), show_default=True, help="Repeatable."
)
@click.option("--expand", "expand", multiple=True, help="Scalar that becomes a dimension.")
@click.option(
    "--on-mismatch",
    type=click.Choice(["error", "skip", "materialize"]),
    default="error",
    show_default=True,
)
@group_option
@branch_option
@message_option
def virtualize(
    place: Storage,
    urls: tuple[str, ...],
    dims: tuple[str, ...],
    expand: tuple[str, ...],
    on_mismatch: str,
    group: str,
    branch: str,
    message: str | None,
) -> None:
    """Make one dataset of NetCDF, HDF5 or GRIB files, without copying their data.

    The repository REPO is created where there is none. Called again, new files are added.
    """
    from icechunk_dask import virtualize as virtualize_files

    report = virtualize_files(
        list(urls),
        place,
        concat_dims=dims,
        expand_dims=expand,
        on_mismatch=on_mismatch,
        group=group,
        branch=branch,
        message=message,
    )
    text(repr(report))
    if report.failed:
        click.get_current_context().exit(1)


@click.command(name="import-kerchunk")
@repository
@click.argument("references", metavar="REFERENCES")
@click.option("-a", "--append", "append_dim", metavar="DIM", help="Append along a dimension.")
@group_option
@branch_option
@message_option
def import_kerchunk(
    repo: Repository,
    references: str,
    append_dim: str | None,
    group: str,
    branch: str,
    message: str | None,
) -> None:
    """Take over kerchunk references: JSON, compressed or not, or a Parquet store."""
    session = repo.writable_session(branch)
    report = import_references(references, session, group=group, append_dim=append_dim)
    snapshot = session.commit(message or f"References of {Path(references).name}")
    text(repr(report))
    text(f"committed {snapshot}")


@click.command()
@repository
@click.argument("target", metavar="TARGET")
@click.option("--format", "form", type=click.Choice(["json", "parquet"]), default="json")
@ref
def export(repo: Repository, ref: str, target: str, form: Literal["json", "parquet"]) -> None:
    """Write kerchunk references of a version to the path TARGET."""
    export_references(repo.readonly_session(ref=ref), target, format=form)
    text(f"wrote {target}")


COMMANDS: dict[str, Any] = {
    "export": export,
    "import-kerchunk": import_kerchunk,
    "virtualize": virtualize,
}
