"""The command virtualize: files as one dataset, without copying their data."""

from __future__ import annotations

from typing import Any

import click

from icechunk import Storage
from icechunk.cli.options import branch_option, group_option, message_option, storage
from icechunk.cli.output import text
from icechunk_dask import virtualize as virtualize_files

__all__ = ["COMMANDS"]


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


COMMANDS: dict[str, Any] = {"virtualize": virtualize}
