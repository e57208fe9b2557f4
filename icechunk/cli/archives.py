"""The commands virtualize and ingest: files as one dataset, by reference and by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from icechunk.cli.options import (
    access_option,
    as_json,
    branch_option,
    group_option,
    location,
    message_option,
    remote_option,
)
from icechunk.cli.output import print_json, text
from icechunk_dask import VirtualizeReport, ingest as ingest_files, virtualize as virtualize_files

__all__ = ["COMMANDS"]


def _of_files(command: Callable[..., None]) -> Callable[..., None]:
    """Add what both commands take."""
    options = [
        location,
        click.argument("urls", metavar="FILES...", nargs=-1, required=True),
        click.option(
            "-d",
            "--dim",
            "concat_dims",
            multiple=True,
            default=("time",),
            show_default=True,
            help="Repeatable.",
        ),
        click.option(
            "--expand", "expand_dims", multiple=True, help="Scalar that becomes a dimension."
        ),
        click.option(
            "--on-mismatch",
            type=click.Choice(["error", "skip", "materialize"]),
            default="error",
            show_default=True,
        ),
        remote_option,
        group_option,
        branch_option,
        message_option,
        as_json,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _place(repo: str, options: dict[str, Any], remote: dict[str, Any]) -> dict[str, Any]:
    """Return arguments: where the repository is, and what it and the files are opened with."""
    return {"target": repo, "storage_options": options, "remote_options": remote or None}


def _tell(report: VirtualizeReport, as_json: bool) -> None:
    """Print what became of the files; the status is 1 if some failed."""
    if as_json:
        print_json(report.to_dict())
    else:
        text(repr(report))
    if report.failed:
        click.get_current_context().exit(1)


@click.command()
@_of_files
@click.option(
    "--chunk-grid",
    type=click.Choice(["auto", "regular"]),
    help="Whether chunks may have several lengths. Default: auto for a new archive.",
)
@access_option
def virtualize(
    repo: str,
    options: dict[str, Any],
    remote_options: dict[str, Any],
    urls: tuple[str, ...],
    as_json: bool,
    **arguments: Any,
) -> None:
    """Make one dataset of NetCDF, HDF5 or GRIB files, without copying their data.

    The repository REPO is created where there is none. Called again, new files are added.
    """
    place = _place(repo, options, remote_options)
    _tell(virtualize_files(list(urls), **place, **arguments), as_json)


@click.command()
@_of_files
@click.option(
    "-c", "--chunk", "chunks", multiple=True, metavar="DIM=SIZE", help="Of new arrays. Repeatable."
)
@click.option("--commit-every", default="1GB", show_default=True, help="Size of a batch, or time.")
@click.option("--engine", help="Let xarray open the files with it: zarr, rasterio, cfgrib, ...")
@click.option(
    "--drop-attribute",
    "drop_attributes",
    multiple=True,
    metavar="VARIABLE:NAME",
    help="Repeatable.",
)
def ingest(
    repo: str,
    options: dict[str, Any],
    remote_options: dict[str, Any],
    urls: tuple[str, ...],
    chunks: tuple[str, ...],
    as_json: bool,
    **arguments: Any,
) -> None:
    """Copy NetCDF, HDF5 or GRIB files into one dataset of a repository.

    The repository REPO is created where there is none. Called again, it finishes what was begun,
    and appends new files.
    """
    sizes = {}
    for chunk in chunks:
        dim, _, size = chunk.partition("=")
        if not size.lstrip("-").isdecimal():
            raise click.BadParameter(f"{chunk!r} is not DIM=SIZE, such as time=24")
        sizes[dim] = int(size)
    place = _place(repo, options, remote_options)
    _tell(ingest_files(list(urls), **place, chunks=sizes or None, **arguments), as_json)


COMMANDS: dict[str, Any] = {"ingest": ingest, "virtualize": virtualize}
