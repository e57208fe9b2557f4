"""What earlier calls have made of an archive: the group that files are added to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, cast
from urllib.parse import unquote

import numpy as np
import xarray as xr
import zarr

from icechunk import ErrorKind, InvalidInputError, Repository, Session
from icechunk.base.rectilinear import rectilinear_chunks
from icechunk.errors import IcechunkError
from icechunk.repository.archive_tables import FIELD
from icechunk_dask.archives.combine import Template
from icechunk_dask.archives.conventions import meanings
from icechunk_dask.archives.extents import Extent, Extents, extent_of
from icechunk_dask.archives.grids import as_regular, check_known
from icechunk_dask.archives.native import digest
from icechunk_dask.archives.parts import Axis, group_of
from icechunk_dask.archives.record import Blocks, Files, Record
from icechunk_dask.archives.sources import UNKNOWN, location_of

__all__ = ["ArchiveGroup"]

#: Key of the snapshot metadata that formerly named files without virtual chunks.
_BY_VALUE: Final = "virtualize.by_value"


@dataclass
class ArchiveGroup:
    """A group that earlier calls have made.

    Attributes
    ----------
    root : str
        Path of the group.
    templates : dict of str to Template
        By path within the group; empty if there is nothing yet.
    record : Record
        Which files are in it, and where.
    """

    root: str
    templates: dict[str, Template] = field(default_factory=dict)
    record: Record = field(default_factory=Record)

    @classmethod
    def of(
        cls,
        repository: Repository | None,
        session: Session | None,
        branch: str,
        root: str,
        dims: Sequence[str],
    ) -> ArchiveGroup:
        """Look at a group, which need not exist; nor need the repository.

        Raises
        ------
        InvalidInputError
            If something other than files of an archive was written to it.
        """
        found = cls(root)
        if repository is None or session is None or session.tree.get(root) is None:
            return found
        record = Record.find(session, root)
        if record is None:
            found._look(session, repository, branch, dims)
            return found
        found.record = record
        for node in session.tree.within(root):
            if node.array is None:
                continue
            name = found.name_of(node.path)
            document = json.loads(node.user_data)
            known = record.templates.get(name)
            if known is None:
                # not ours: files need not have it
                continue
            document.pop(FIELD, None)
            document, edges = as_regular(document, dims)
            if edges:
                check_known(node.path)
            own = tuple(document.get("dimension_names") or ())
            for dim, length in zip(own, document["shape"], strict=True):
                if dim in dims:
                    record.check(name, (group_of(name), dim), length)
            found.templates[name] = Template(
                own,
                _without_lengths(document, own, dims),
                known["meaning"],
                known["by_value"],
                bytes.fromhex(known["digest"]),
                edges,
            )
        missing = [name for name in record.templates if name not in found.templates]
        if missing:
            raise InvalidInputError(
                f"the archive in {root} has lost its variable {missing[0]!r}: something else has "
                "deleted it, and files cannot be added any more"
            )
        other = {dim for _, dim in record.blocks} - set(dims)
        if other:
            raise InvalidInputError(
                f"the archive in {root} was combined along {sorted(other)[0]!r}; name it in "
                "concat_dims"
            )
        return found

    @property
    def is_empty(self) -> bool:
        """Whether files may still determine what the arrays are like."""
        return not self.templates or (
            bool(self.record.blocks)
            and not any(b.lengths.any() for b in self.record.blocks.values())
        )

    @property
    def is_recorded(self) -> bool:
        """Whether it is known which file lies where."""
        files = self.record.files
        return any(files.version(row) != UNKNOWN for row in range(len(files)))

    @staticmethod
    def dimensions(session: Session | None, root: str) -> list[str]:
        """Return the dimensions along which the files of a group were combined."""
        if session is None or session.tree.get(root) is None:
            return []
        record = Record.find(session, root)
        return [] if record is None else list(dict.fromkeys(dim for _, dim in record.blocks))

    def matching(
        self, urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    ) -> dict[str, str]:
        """Return locations of files of the archive by URLs, which may be patterns.

        Raises
        ------
        InvalidInputError
            If a URL is not that of a file of the archive.
        """
        known = dict.fromkeys(self.record.files.locations)
        given = [urls] if isinstance(urls, str | os.PathLike) else urls
        found: dict[str, str] = {}
        for each in given:
            url = os.fspath(each)
            location = location_of(url)
            if location in known:
                found[url] = location
                continue
            pattern = unquote(location)
            those = [name for name in known if fnmatchcase(unquote(name), pattern)]
            if not those:
                raise InvalidInputError(f"{url} is not in the archive in {self.root}")
            found.update(zip(those, those, strict=True))
        if not self.record.are_apart(list(found.values())):
            raise InvalidInputError(
                f"where in the archive in {self.root} these files are was not recorded: they "
                "were there before there was a table of its files; virtualize those that are to "
                "stay into another group"
            )
        return found

    def name_of(self, path: str) -> str:
        """Return the path of a node within the group."""
        return path.removeprefix(self.root).strip("/")

    def read_digests(self, session: Session, dims: Sequence[str]) -> None:
        """Read what files have in common, where that is not known yet.

        Raises
        ------
        InvalidInputError
            If the caller may not read it: new files could have anything else then.
        """
        for name, template in self.templates.items():
            if template.digest or set(dims) & set(template.dimensions):
                continue
            path = f"{self.root.strip('/')}/{name}".strip("/")
            try:
                with rectilinear_chunks():
                    array = zarr.open_array(session.store, path=path, mode="r")
                values = np.asarray(array[...])
            except InvalidInputError as exc:
                if exc.kind is not ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER:
                    raise
                raise InvalidInputError(
                    f"variable {name!r} has no dimension of {tuple(dims)}, so new files have to "
                    f"have the values of the archive in {self.root}, which may not be read: pass "
                    "authorize_virtual_chunk_access, or a Repository that was opened with it"
                ) from exc
            self.templates[name] = replace(template, digest=digest(values))

    # -- archives without a table ------------------------------------------------------
    def _look(
        self, session: Session, repository: Repository, branch: str, dims: Sequence[str]
    ) -> None:
        """Find out what references and arrays tell: one block that is full."""
        locations: set[str] = set()
        lengths: dict[Axis, int] = {}
        extents: dict[Axis, Extent] = {}
        copied: set[str] = set()
        others = tuple(f"{root}/" for root in Record.roots(session, self.root))
        for node in session.tree.within(self.root):
            if f"{node.path}/".startswith(others):
                continue
            if node.array is None:
                self._look_at_group(session, node.path, dims, lengths, extents)
                continue
            found = _locations(session, node.path)
            locations |= found
            if not found:
                copied.add(self.name_of(node.path))
        if not self.templates:
            return
        for name in copied & self.templates.keys():
            self.templates[name] = replace(self.templates[name], by_value="it was before")
        by_value: set[str] = set()
        for snapshot in repository.ancestry(branch=branch):
            by_value |= set(snapshot.metadata.get(_BY_VALUE, ()))
        # what something else has written counts as a file without a name
        names = sorted(locations | by_value) or [""]
        if len({dim for _, dim in lengths}) > 1:
            raise InvalidInputError(
                f"there is no table of the files of the archive in {self.root}, and it has "
                "several dimensions; virtualize all of its files again, into another group"
            )
        by_value_too = [name not in locations for name in names]
        files = Files.of(names, [UNKNOWN] * len(names), by_value_too)
        none = np.zeros(len(names), np.int64)
        self.record = Record(files, np.arange(len(names)), none)
        for axis, length in lengths.items():
            extent = extents.get(axis)
            self.record.blocks[axis] = Blocks(
                "url" if extent is None else "coordinate",
                np.asarray([length], np.int64),
                Extents.of([extent]),
                none[:1],
            )
            self.record.places[axis] = none

    def _look_at_group(
        self,
        session: Session,
        path: str,
        dims: Sequence[str],
        lengths: dict[Axis, int],
        extents: dict[Axis, Extent],
    ) -> None:
        within = self.name_of(path)
        try:
            with rectilinear_chunks():
                dataset = xr.open_dataset(
                    cast(Any, session.store),
                    engine="zarr",
                    group=path,
                    decode_cf=False,
                    consolidated=False,
                    zarr_format=3,
                )
        except (KeyError, ValueError) as exc:
            if isinstance(exc, IcechunkError):
                raise
            raise InvalidInputError(
                f"the group {path!r} is no dataset that files could be added to: {exc.args[0]}"
            ) from None
        means = meanings({str(name): v.attrs for name, v in dataset.variables.items()})
        for key, variable in dataset.variables.items():
            name = str(key)
            node = session.tree.require(f"{path.rstrip('/')}/{name}")
            own = tuple(map(str, variable.dims))
            combined = set(dims) & set(own)
            document, edges = as_regular(json.loads(node.user_data), dims)
            self.templates[f"{within}/{name}" if within else name] = Template(
                own, _without_lengths(document, own, dims), means[name], edges=edges
            )
            for dim in combined:
                lengths[within, dim] = variable.sizes[dim]
                if name == dim:
                    extent = extent_of(name, variable.load())
                    if extent is not None and _is_sorted(variable.values):
                        extents[within, dim] = extent


def _without_lengths(
    document: Mapping[str, Any], own: Sequence[str], dims: Sequence[str]
) -> dict[str, Any]:
    """Return a document as all files have it, whatever their lengths."""
    shape = [0 if dim in dims else n for dim, n in zip(own, document["shape"], strict=True)]
    return {**document, "shape": shape or document["shape"]}


def _is_sorted(values: Any) -> bool:
    steps = np.asarray(values)
    return bool((steps[1:] > steps[:-1]).all() or (steps[1:] < steps[:-1]).all())


def _locations(session: Session, path: str) -> set[str]:
    refs = session.chunk_refs(path)
    if refs.locations is None or refs.location is None:
        return set()
    used = np.unique(refs.location)
    return {refs.locations[i] for i in used[used >= 0].tolist()}
