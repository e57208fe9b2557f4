"""Commands that check a repository and its jobs: verify, jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import click

from icechunk import Repository
from icechunk.cli import completing
from icechunk.cli.options import as_json, chunk_repository, confirm, repository
from icechunk.cli.output import done, error_console, print_json, text

__all__ = ["COMMANDS"]


@click.command()
@chunk_repository
@click.option("--sources", is_flag=True, help="Look at the files that virtual chunks are in.")
@click.option(
    "--deep",
    type=click.Choice(["none", "sample", "all"]),
    default="none",
    show_default=True,
    help="Which chunks of the newest versions to decode.",
)
@as_json
def verify(
    repo: Repository, sources: bool, deep: Literal["none", "sample", "all"], as_json: bool
) -> None:
    """Verify that everything that versions refer to is there and consistent.

    The exit status is 1 if there is damage.
    """
    console = error_console()
    with console.status("") as status:
        found = repo.verify(
            sources=sources,
            deep={"none": False, "sample": "sample", "all": True}[deep],  # type: ignore[arg-type]
            progress=lambda what, done, total: status.update(f"{what}: {done} of {total}"),
        )
    if as_json:
        print_json(found.to_dict())
    else:
        text(repr(found))
    if not found.ok:
        click.get_current_context().exit(1)


@click.command()
@repository
@click.argument("name", required=False, shell_complete=completing.jobs)
@click.option(
    "-d", "--delete", is_flag=True, help="Forget the job, and what is not committed of it."
)
@confirm
@as_json
def jobs(
    repo: Repository, name: str | None, delete: bool, ask: Callable[[str], None], as_json: bool
) -> None:
    """List jobs, or show how far the job NAME is, or delete it."""
    if delete:
        if name is None:
            raise click.UsageError("name the job to delete")
        repo.jobs.open(name)
        ask(f"Delete the job {name}?")
        repo.jobs.delete(name)
        done(as_json, f"deleted the job {name}", deleted=name)
        return
    if name is None:
        names = repo.jobs.list()
        if as_json:
            print_json(names)
        else:
            text("\n".join(names) if names else "there are no jobs")
        return
    status = repo.jobs.open(name).status()
    if as_json:
        print_json(status.to_dict())
    else:
        text(repr(status))


COMMANDS: dict[str, Any] = {"jobs": jobs, "verify": verify}
