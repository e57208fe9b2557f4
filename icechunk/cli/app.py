"""The command itself: it lists its commands, and turns errors into messages.

A command's module is imported when the command runs, so that help and completion are quick.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, Final

import click

from icechunk._version import __version__
from icechunk.base.visible import visible
from icechunk.cli.advice import in_options
from icechunk.errors import IcechunkError

__all__ = ["main"]

#: By name: the module in this package that defines the command, and what the list says of it.
COMMANDS: Final = {
    "info": ("reading", "Branches, tags and format of a repository."),
    "log": ("reading", "Commits of a version, newest first."),
    "show": ("reading", "One commit, and what it changed."),
    "diff": ("reading", "What differs between two versions."),
    "ls": ("contents", "Groups and arrays of a group."),
    "tree": ("contents", "All groups and arrays of a version."),
    "cat": ("contents", "The zarr.json of a group or array, or a chunk's values."),
    "chunks": ("contents", "Where the chunks of an array are."),
    "annotate": ("copying", "Which commit last changed each chunk."),
    "ops": ("reading", "Operations on a repository, newest first."),
    "inspect": ("reading", "What a stored object says."),
    "branch": ("refs", "List, create and delete branches."),
    "tag": ("refs", "List, create and delete tags."),
    "reset": ("refs", "Move a branch to another commit."),
    "squash": ("rework", "Squash the newest commits of a branch into one."),
    "cherry-pick": ("rework", "Apply the changes of a commit to another branch."),
    "revert": ("rework", "Undo the changes of a commit, by a new commit."),
    "copy": ("copying", "Copy a version with its history to another repository."),
    "create": ("upkeep", "Make a new, empty repository."),
    "config": ("upkeep", "The stored configuration; adds containers."),
    "doctor": ("doctor", "Try credentials, reading, and conditional writes."),
    "upgrade": ("upkeep", "Turn a repository of spec 1 into spec 2."),
    "rewrite": ("upkeep", "Rewrite the manifests of a branch."),
    "expire": ("upkeep", "Remove old commits from the history."),
    "verify": ("proof", "Verify that all that versions refer to is there."),
    "repair": ("repair", "Restore what can be restored of a damaged repository."),
    "jobs": ("proof", "List jobs, show how far one is, or delete it."),
    "gc": ("upkeep", "Delete what no version refers to."),
    "stats": ("upkeep", "How much space the chunks take."),
    "ingest": ("archives", "Copy NetCDF, HDF5 or GRIB files into one dataset."),
    "virtualize": ("archives", "Make one dataset of NetCDF, HDF5 or GRIB files."),
    "import-kerchunk": ("kerchunk_references", "Import kerchunk references."),
    "export": ("kerchunk_references", "Export a version as kerchunk references."),
}


class Commands(click.Group):
    """Finds commands in their modules, and turns errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, related ones together."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"icechunk.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of a line; for a misspelt one, the error suggests others."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, n=3)
            if not near:
                raise
            raise click.UsageError(
                f"{error.message} Did you mean {' or '.join(near)}?", ctx
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. A mistake of the user is a message, and status 1."""
        try:
            return super().invoke(ctx)
        except (IcechunkError, ImportError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            if isinstance(error, ModuleNotFoundError) and error.msg.startswith("No module"):
                message = f"{error.name} is not installed: pip install 'icechunk[all]'"
            else:
                name = ctx.invoked_subcommand
                command = self.get_command(ctx, name) if name else None
                message = in_options(str(error) or type(error).__name__, command)
            raise click.ClickException(visible(message)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="icechunk")
def main() -> None:
    """Work with Icechunk repositories.

    A repository is a path or a URL: weather, s3://bucket/prefix, gs://..., az://...,
    https://... Options of a storage are given as -o NAME=VALUE, for example
    -o endpoint_url=http://localhost:9000 -o allow_http=true -o anonymous=true.

    A version (REF) is a branch, a tag, the id of a snapshot or its beginning, main~2 (two
    commits before), or main@2024-05-01 (the newest then). Times are in UTC.
    """
