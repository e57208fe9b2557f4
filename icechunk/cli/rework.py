"""Commands that make commits of other commits: squash, cherry-pick, revert."""

from __future__ import annotations

from typing import Any

import click

from icechunk import Repository
from icechunk.cli.options import branch_option, message_option, repository
from icechunk.cli.output import text

__all__ = ["COMMANDS"]


@click.command()
@repository
@click.argument("base", metavar="REF")
@branch_option
@click.option("-m", "--message", required=True, help="Of the commit.")
def squash(repo: Repository, base: str, branch: str, message: str) -> None:
    """Make one commit of all commits of a branch that came after REF.

    What the branch holds stays the same.
    """
    text(f"committed {repo.squash(branch, base, message)}")


@click.command("cherry-pick")
@repository
@click.argument("commit", metavar="REF")
@branch_option
@message_option
def cherry_pick(repo: Repository, commit: str, branch: str, message: str | None) -> None:
    """Make the changes of the commit REF once more, on a branch."""
    text(f"committed {repo.cherry_pick(branch, commit, message=message)}")


@click.command()
@repository
@click.argument("commit", metavar="REF")
@branch_option
@message_option
def revert(repo: Repository, commit: str, branch: str, message: str | None) -> None:
    """Take the changes of the commit REF back, by a new commit on a branch."""
    text(f"committed {repo.revert(branch, commit, message=message)}")


COMMANDS: dict[str, Any] = {"cherry-pick": cherry_pick, "revert": revert, "squash": squash}
