"""Add files to an archive: scan, fit, write and commit them, in one go or in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from icechunk import InvalidInputError, Session, VirtualChunkContainer
from icechunk.base.texts import counted
from icechunk_dask.archives.committing import commit
from icechunk_dask.archives.fitting import Fitting
from icechunk_dask.archives.group import ArchiveGroup
from icechunk_dask.archives.parts import Scan
from icechunk_dask.archives.report import VariableReport, VirtualizeReport
from icechunk_dask.archives.scan import Scanner
from icechunk_dask.archives.scan_many import scan_many
from icechunk_dask.archives.target import Opened
from icechunk_dask.archives.unmet import Unmet
from icechunk_dask.archives.writing import Writing
from icechunk_dask.progress import Progress

__all__ = ["Adding", "none_read"]

#: How many reasons an error lists.
_SHOWN: Final = 10
#: If a scan takes this many seconds, the first file may have changed before the last was read.
_MANY: Final = 2


@dataclass
class Adding:
    """Adds files to one group.

    Attributes
    ----------
    opened : Opened
    branch, root : str
    locations : dict of str to str
        The location of each file of the call, by URL.
    scanner : Scanner
    options : dict
        For Dask.
    on_mismatch, order : str
    chunk_grid : str or None
    allow_gaps : bool
    containers : sequence of VirtualChunkContainer or None
        For a new repository.
    message, metadata : optional
        Of the commits.
    unmet : Unmet
        What arguments name and no file has.
    """

    opened: Opened
    branch: str
    root: str
    locations: Mapping[str, str]
    scanner: Scanner
    options: dict[str, Any]
    on_mismatch: str
    order: str
    chunk_grid: str | None
    allow_gaps: bool
    containers: Sequence[VirtualChunkContainer] | None
    message: str | None
    metadata: Mapping[str, Any] | None
    unmet: Unmet = field(default_factory=Unmet)

    def add(
        self,
        session: Session | None,
        archive: ArchiveGroup,
        todo: Sequence[str],
        again: set[str],
        commit_every: int | None,
        progress: Progress,
    ) -> VirtualizeReport:
        """Add files, and commit after every `commit_every` of them.

        Parameters
        ----------
        session : Session or None
            Writable; None if there is no repository yet.
        archive : ArchiveGroup
            The archive, as it is in that session.
        todo : sequence of str
            URLs, in their order.
        again : set of str
            Those that are in the archive already, in another version.
        commit_every : int, optional
            Default: one commit.
        progress : Progress
        """
        progress.set(phase="scanning", total=len(todo))
        report = VirtualizeReport(self.root, branch=self.branch, **self._reading(archive))
        size = commit_every or max(1, len(todo))
        for first in range(0, len(todo), size):
            if first:
                session, archive = self._now()
            with self._telling(report, len(todo)):
                some = self._add(session, archive, todo[first : first + size], again, progress)
            report = _together(report, some)
            if first + size < len(todo) and not self.allow_gaps:
                gaps = [url for url in some.failed if url not in again]
                if gaps:
                    # whatever comes after a gap waits until it is filled
                    rest = tuple(url for url in todo[first + size :] if url not in again)
                    report = replace(report, withheld=(*report.withheld, *rest))
                    todo = [url for url in todo if url in again or url not in set(rest)]
                    last = self._rest(todo[first + size :], again, progress)
                    return replace(_together(report, last), unmet=self.unmet.told())
        progress.set(phase="done", tasks=len(todo))
        return replace(report, unmet=self.unmet.told())

    def _rest(self, todo: Sequence[str], again: set[str], progress: Progress) -> VirtualizeReport:
        """Replace the files after a gap that are to be replaced."""
        if not todo:
            return VirtualizeReport(self.root, branch=self.branch)
        return self._add(*self._now(), todo, again, progress)

    def _now(self) -> tuple[Session | None, ArchiveGroup]:
        """Return the state after a commit: a session, and the archive in it."""
        repository = self.opened.repository
        session = self.opened.session(self.branch)
        dims = self.scanner.concat_dims
        archive = ArchiveGroup.of(repository, session, self.branch, self.root, dims)
        if session is not None:
            archive.read_digests(session, dims)
        return session, archive

    @contextmanager
    def _telling(self, report: VirtualizeReport, count: int) -> Iterator[None]:
        """Add a note of what is committed to an error or interrupt."""
        try:
            yield
        except BaseException as exc:
            done = len(report.added) + len(report.replaced)
            if done:
                exc.add_note(
                    f"{done} of {counted(count, 'file is', 'files are')} committed to "
                    f"{self.root} of {self.branch!r}, in "
                    f"the snapshot {report.snapshot_id}. Call virtualize with the same arguments "
                    "again to go on with the others."
                )
            elif isinstance(exc, KeyboardInterrupt):
                exc.add_note(
                    "Nothing is committed. With commit_every= a call that is stopped goes on "
                    "where it was."
                )
            raise

    def _reading(self, archive: ArchiveGroup) -> dict[str, Any]:
        return self.opened.reading(archive.record.files.locations)

    def _add(
        self,
        session: Session | None,
        archive: ArchiveGroup,
        todo: Sequence[str],
        again: set[str],
        progress: Progress,
    ) -> VirtualizeReport:
        """Add files in one commit."""
        opened, root = self.opened, self.root
        progress.set(phase="scanning")
        scans = {scan.url: scan for scan in scan_many(self.scanner, todo, self.options, progress)}
        failed = {name: scans[name].failure for name in todo if scans[name].failure}
        failed |= self._replaced(scans)
        read = [scans[name] for name in sorted(todo) if name not in failed]
        withheld: list[str] = []
        gaps = [name for name in failed if name not in again]
        if gaps and not self.allow_gaps:
            withheld = [scan.url for scan in read if scan.url > min(gaps) and scan.url not in again]
            read = [scan for scan in read if scan.url not in set(withheld)]
        self.unmet.see(read)
        if archive.is_empty:
            # later files need not have what the first of them have
            self.unmet.refuse("rename")
        fitting = Fitting(
            archive,
            self.scanner.concat_dims,
            self.on_mismatch,
            self.order,
            self.chunk_grid,
            self.scanner.expand_dims,
        )
        fitted = fitting.fit(
            read, {self.locations[url] for url in todo if url in again and url not in failed}
        )
        report = VirtualizeReport(
            root,
            branch=self.branch,
            failed=failed,
            withheld=tuple(withheld),
            skipped={
                url: tuple(f"{m.variable}: {m.problem}" for m in found)
                for url, found in sorted(fitted.left_out.items())
            },
        )
        if not fitted.parts:
            return report
        if session is None:
            opened.create(list(self.locations.values()), self.containers)
            session = opened.session(self.branch)
            assert session is not None
        progress.set(phase="writing")
        begun = session.snapshot_id
        writing = Writing(
            session,
            archive,
            fitted,
            scans,
            self.scanner.read,
            lambda: opened.made.readonly_session(snapshot_id=begun),
        )
        found = writing.write()
        added = tuple(url for url in fitted.urls() if url not in again)
        replaced = tuple(url for url in fitted.urls() if url in again)
        progress.set(phase="committing")
        snapshot = commit(
            opened.made,
            session,
            self.message or _message(added, replaced, root),
            self.metadata,
            root,
            found,
        )
        progress.add({"commits": 1})
        return replace(
            report,
            snapshot_id=snapshot,
            added=added,
            replaced=replaced,
            materialized=fitted.copied(),
            variables=found,
            sizes=writing.sizes(),
            chunks=writing.counts(found),
            order=writing.order(),
            holes=writing.record.holes(),
            **opened.reading(writing.locations()),
        )

    def _replaced(self, scans: Mapping[str, Scan]) -> dict[str, str]:
        """Return why files cannot be added: they were written to while the rest was scanned."""
        read = [url for url, scan in scans.items() if not scan.failure]
        if len(read) < _MANY:
            # a single file was checked a moment ago
            return {}
        sources = self.scanner.sources
        now = sources.versions(read)
        why = "it was replaced or written to after it was read; call again"
        return {url: why for url in read if sources.has_changed(url, scans[url].version, now[url])}


def none_read(failed: Mapping[str, str]) -> InvalidInputError:
    """Return the error of a call that could not read any file."""
    listed = "\n".join(f"  {url}: {why}" for url, why in [*failed.items()][:_SHOWN])
    return InvalidInputError(f"none of {counted(len(failed), 'file')} could be read:\n{listed}")


def _together(first: VirtualizeReport, second: VirtualizeReport) -> VirtualizeReport:
    """Return one report of two commits."""
    if second.snapshot_id is None:
        base = first
    else:
        base = replace(
            second,
            chunks={
                kind: first.chunks.get(kind, 0) + count for kind, count in second.chunks.items()
            },
            variables={
                name: _sum(first.variables.get(name), each)
                for name, each in second.variables.items()
            },
        )
    return replace(
        base,
        added=(*first.added, *second.added),
        replaced=(*first.replaced, *second.replaced),
        failed={**first.failed, **second.failed},
        withheld=(*first.withheld, *second.withheld),
        skipped={**first.skipped, **second.skipped},
        materialized={**first.materialized, **second.materialized},
    )


def _sum(first: VariableReport | None, second: VariableReport) -> VariableReport:
    if first is None:
        return second
    reasons = dict(first.reasons)
    for reason, size in second.reasons.items():
        reasons[reason] = reasons.get(reason, 0) + size
    return VariableReport(
        second.by_value,
        first.virtual + second.virtual,
        first.inline + second.inline,
        first.bytes_by_value + second.bytes_by_value,
        reasons,
        second.chunk_lengths,
    )


def _message(added: Sequence[str], replaced: Sequence[str], root: str) -> str:
    count = len(added) or len(replaced)
    files = counted(count, "file")
    more = f", {len(replaced)} replaced" if added and replaced else ""
    what = "as virtual chunks" if added else "replaced"
    return f"{files} {what}{more} in {root}"
