"""Commands that make commits of other commits: squash, cherry-pick, revert."""

from __future__ import annotations

from typing import Any

import click

from icechunk import Repository
from icechunk.cli import completing
from icechunk.cli.options import as_json, branch_option, message_option, repository
from icechunk.cli.output import done

__all__ = ["COMMANDS"]


def _committed(as_json: bool, branch: str, snapshot: str) -> None:
    done(as_json, f"committed {snapshot}", branch=branch, snapshot=snapshot)


@click.command()
@repository
@click.argument("base", metavar="REF", shell_complete=completing.versions)
@branch_option
@click.option("-m", "--message", required=True, help="Commit message.")
@as_json
def squash(repo: Repository, base: str, branch: str, message: str, as_json: bool) -> None:
    """Squash all commits of a branch after REF into one commit.

    The data of the branch stay the same.
    """
    _committed(as_json, branch, repo.squash(branch, base, message))


@click.command("cherry-pick")
@repository
@click.argument("commit", metavar="REF", shell_complete=completing.versions)
@branch_option
@message_option
@as_json
def cherry_pick(
    repo: Repository, commit: str, branch: str, message: str | None, as_json: bool
) -> None:
    """Apply the changes of the commit REF to a branch."""
    _committed(as_json, branch, repo.cherry_pick(branch, commit, message=message))


@click.command()
@repository
@click.argument("commit", metavar="REF", shell_complete=completing.versions)
@branch_option
@message_option
@as_json
def revert(repo: Repository, commit: str, branch: str, message: str | None, as_json: bool) -> None:
    """Undo the changes of the commit REF, by a new commit on a branch."""
    _committed(as_json, branch, repo.revert(branch, commit, message=message))


COMMANDS: dict[str, Any] = {"cherry-pick": cherry_pick, "revert": revert, "squash": squash}
