"""The commands virtualize and ingest: files as one dataset, by reference and by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

Command = Callable[..., None]


def _pairs(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Parse values given as NAME=VALUE."""
    split = [item.partition("=") for item in given]
    wrong = [item for item, parts in zip(given, split, strict=True) if not all(parts)]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not {param.metavar}")
    return {name: value for name, _, value in split}


def _several(
    flags: str, name: str, help: str, metavar: str = "NAME", **others: Any
) -> Callable[[Command], Command]:
    """Return an option that can be repeated."""
    return click.option(
        *flags.split("/"),
        name,
        multiple=True,
        metavar=metavar,
        help=f"{help} Repeatable.",
        **others,
    )


def _of_files(
    on_mismatch: Sequence[str], on_changed: Sequence[str]
) -> Callable[[Command], Command]:
    """Return a decorator that adds the arguments that both commands share.

    Parameters
    ----------
    on_mismatch : sequence of str
        What the command can do with files that differ.
    on_changed : sequence of str
        What the command can do with files that have changed.
    """
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
            help="Dimension along which to combine the files. Repeatable.",
        ),
        _several(
            "--expand",
            "expand_dims",
            "Scalar variable to turn into a dimension, along which files are combined.",
        ),
        _several("--variable", "variables", "Variable to take. Default: all."),
        _several("--drop-variable", "drop_variables", "Variable to leave out."),
        _several(
            "--drop-attribute",
            "drop_attributes",
            "Attribute to leave out everywhere, or in one variable.",
            "[VARIABLE:]NAME",
        ),
        _several(
            "--rename", "rename", "New name of a variable or dimension.", "OLD=NEW", callback=_pairs
        ),
        _several(
            "--filter",
            "filter_by_keys",
            "Take only the GRIB messages in which the ecCodes key KEY has this value.",
            "KEY=VALUE",
            callback=_pairs,
        ),
        click.option(
            "--on-mismatch",
            type=click.Choice(on_mismatch),
            default="error",
            show_default=True,
            help="What to do with files that differ from the first. skip leaves them out, "
            "materialize copies their values"
            + (
                ", layout does where only chunks or codecs differ."
                if "layout" in on_mismatch
                else "."
            ),
        ),
        click.option(
            "--on-changed",
            type=click.Choice(on_changed),
            default="error",
            show_default=True,
            help="What to do with files that have changed since they were added. keep leaves what "
            "was added" + (", replace takes them again." if "replace" in on_changed else "."),
        ),
        click.option(
            "--allow-gaps", is_flag=True, help="Add files that follow an unreadable one, too."
        ),
        click.option(
            "--verify",
            type=click.Choice(["sample", "all", "none"]),
            default="sample",
            show_default=True,
            help="Which chunks to decode and compare with what the library of the file reads.",
        ),
        remote_option,
        group_option,
        branch_option,
        message_option,
        as_json,
    ]

    def with_options(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


def _arguments(
    repo: str,
    options: dict[str, Any],
    remote_options: dict[str, Any],
    variables: tuple[str, ...],
    filter_by_keys: dict[str, str],
    **others: Any,
) -> dict[str, Any]:
    """Turn the arguments of the commands into those of the functions."""
    return {
        "target": repo,
        "storage_options": options,
        "remote_options": remote_options or None,
        "variables": variables or None,
        "filter_by_keys": filter_by_keys or None,
        **others,
    }


def _tell(report: VirtualizeReport, as_json: bool) -> None:
    """Print what became of the files; exit with status 1 if some failed."""
    if as_json:
        print_json(report.to_dict())
    else:
        text(repr(report))
    if report.failed:
        click.get_current_context().exit(1)


@click.command()
@_of_files(
    on_mismatch=["error", "skip", "materialize", "layout"],
    on_changed=["error", "replace", "keep"],
)
@click.option(
    "--order",
    type=click.Choice(["auto", "coordinate", "url"]),
    default="auto",
    show_default=True,
    help="How to sort the files of a new archive; auto is by coordinate, if there is one.",
)
@_several("--loadable", "loadable", "Variable to copy, instead of referring to its chunks.")
@click.option(
    "--chunk-grid",
    type=click.Choice(["auto", "regular"]),
    help="Whether chunks may have several lengths. Default: auto for a new archive.",
)
@click.option(
    "--max-bytes-by-value",
    type=click.IntRange(0),
    default=100_000_000,
    show_default=True,
    help="Bytes of one variable to copy, at most, where its chunks cannot be referenced.",
)
@click.option(
    "--commit-every", type=click.IntRange(1), help="Number of files in one commit. Default: all."
)
@access_option
def virtualize(urls: tuple[str, ...], as_json: bool, **arguments: Any) -> None:
    """Make one dataset of NetCDF, HDF5 or GRIB files, without copying their data.

    The repository REPO is created if there is none. Called again, the command adds new files.
    """
    _tell(virtualize_files(list(urls), **_arguments(**arguments)), as_json)


@click.command()
@_of_files(on_mismatch=["error", "skip", "materialize"], on_changed=["error", "keep"])
@_several(
    "-c/--chunk",
    "chunks",
    "Chunk length of new arrays along a dimension: time=24.",
    "DIM=SIZE",
    callback=_pairs,
)
@click.option(
    "--commit-every",
    default="1GB",
    show_default=True,
    metavar="SIZE|TIME|COUNT",
    help="Commit after so many bytes, so long, or so many tasks: 500MB, 60s, 10.",
)
@click.option("--engine", help="Engine of xarray that opens the files: zarr, rasterio, cfgrib, ...")
def ingest(urls: tuple[str, ...], chunks: dict[str, str], as_json: bool, **arguments: Any) -> None:
    """Copy NetCDF, HDF5 or GRIB files into one dataset of a repository.

    The repository REPO is created if there is none. Called again, the command finishes what it
    began, and adds new files.
    """
    wrong = [f"{dim}={size}" for dim, size in chunks.items() if not size.lstrip("-").isdecimal()]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not DIM=SIZE, such as time=24")
    sizes = {dim: int(size) for dim, size in chunks.items()}
    report = ingest_files(list(urls), chunks=sizes or None, **_arguments(**arguments))
    _tell(report, as_json)


COMMANDS: dict[str, Any] = {"ingest": ingest, "virtualize": virtualize}
