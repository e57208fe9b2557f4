"""What a shell completes: versions, branches, tags, jobs, paths in a version.

A completion answers soon or not at all, and reports no errors. It leaves out names that a shell
would have to quote: a stranger may have chosen them.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

import click
from click.shell_completion import CompletionItem

from icechunk import Repository, storage_from_url
from icechunk.base.visible import in_a_line
from icechunk.storage import version_url

__all__ = ["branches", "folders", "jobs", "names", "paths", "tags", "versions"]

#: Seconds to wait for answers, and how many to give.
_PATIENCE: Final = 1.5
_MOST: Final = 200
#: Shells insert completions as they are, and would run commands in other names.
_HARMLESS: Final = re.compile(r"[\w./@%+=:,][\w./@%+=:,-]*")

#: Completions, each with its description.
Found: TypeAlias = Iterable[tuple[str, str | None]]
Completion: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completion(find: Callable[[click.Context, str], Found]) -> Completion:
    def complete(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:
        found: list[CompletionItem] = []

        def look() -> None:
            try:
                matching = (
                    CompletionItem(value, help=help)
                    for value, help in find(ctx, text)
                    if value.startswith(text) and _HARMLESS.fullmatch(value)
                )
                found.extend(itertools.islice(matching, _MOST))
            except Exception:  # a shell cannot show it; the command itself will
                return

        # a storage that does not answer blocks this thread, but not the end of the process
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        return list(found)

    return complete


def _repository(ctx: click.Context) -> Repository:
    # after an option without a value, click has not assigned the arguments yet
    repo = ctx.params.get("repo") or ctx.args[0]
    named = version_url(repo)
    options = ctx.params.get("options") or {}
    place = storage_from_url(repo if named is None else named.storage, **dict(options))
    return Repository.open(place)


@_completion
def branches(ctx: click.Context, text: str) -> Found:
    """Complete the name of a branch."""
    return [(name, None) for name in sorted(_repository(ctx).list_branches())]


@_completion
def tags(ctx: click.Context, text: str) -> Found:
    """Complete the name of a tag."""
    return [(name, None) for name in sorted(_repository(ctx).list_tags())]


def names(kind: str) -> Completion:
    """Return what completes the name of a branch or of a tag."""
    return {"branch": branches, "tag": tags}[kind]


@_completion
def versions(ctx: click.Context, text: str) -> Iterator[tuple[str, str | None]]:
    """Complete a branch or a tag, and the id of a commit when its beginning is there."""
    repo = _repository(ctx)
    yield from ((name, "branch") for name in sorted(repo.list_branches()))
    yield from ((name, "tag") for name in sorted(repo.list_tags()))
    if not text:
        return
    seen: set[str] = set()
    for name in sorted(repo.list_branches()):
        for commit in repo.ancestry(branch=name):
            if commit.id in seen:
                break
            seen.add(commit.id)
            yield commit.id, in_a_line(commit.message.partition("\n")[0])


@_completion
def jobs(ctx: click.Context, text: str) -> Found:
    """Complete the name of a job."""
    return [(name, None) for name in _repository(ctx).jobs.list()]


@_completion
def paths(ctx: click.Context, text: str) -> Iterator[tuple[str, str | None]]:
    """Complete a path, one group at a time."""
    session = _repository(ctx).readonly_session(ref=ctx.params.get("ref") or "main")
    group = text.rpartition("/")[0]
    for node in session.tree.children("/" + group.strip("/")):
        name = node.path.rpartition("/")[2]
        start = f"{group}/{name}" if "/" in text else name
        yield start, "array" if node.is_array else "group"


def folders(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:
    """Let the shell complete a folder, which a repository may be in."""
    return [CompletionItem(text, type="dir")]
