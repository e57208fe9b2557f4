"""What earlier calls have made of an archive: the group that files are added to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from icechunk import ErrorKind, InvalidInputError, Repository, Session
from icechunk_dask.archives.combine import Template
from icechunk_dask.archives.scan import decoded, digest, meanings

__all__ = ["BY_VALUE", "ArchiveGroup"]

#: Key of the metadata of snapshots that names files without virtual chunks.
BY_VALUE: Final = "virtualize.by_value"


@dataclass
class ArchiveGroup:
    """A group that was made by earlier calls.

    Attributes
    ----------
    templates : dict of str to Template
        By path within the group; empty if there is nothing yet.
    lengths, coordinates : dict
        Of the dimensions along which files are combined.
    locations : set of str
        Of the files that are in it.
    """

    templates: dict[str, Template] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    coordinates: dict[str, npt.NDArray[Any] | None] = field(default_factory=dict)
    locations: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        repository: Repository | None,
        session: Session | None,
        branch: str,
        root: str,
        dims: Sequence[str],
    ) -> ArchiveGroup:
        """Look at a group, which need not exist; nor need the repository."""
        found = cls()
        if repository is None or session is None or session.tree.get(root) is None:
            return found
        nodes = session.tree.within(root)
        for node in nodes:
            if node.array is not None:
                found.locations |= _locations(session, node.path)
            else:
                found._add_group(session, root, node.path, dims)
        if found.templates:
            for snapshot in repository.ancestry(branch=branch):
                found.locations |= set(snapshot.metadata.get(BY_VALUE, ()))
        return found

    def _add_group(self, session: Session, root: str, path: str, dims: Sequence[str]) -> None:
        within = path.removeprefix(root).strip("/")
        dataset = xr.open_dataset(
            cast(Any, session.store),
            engine="zarr",
            group=path,
            decode_cf=False,
            consolidated=False,
            zarr_format=3,
        )
        means = meanings(dataset)
        for key, variable in dataset.variables.items():
            name = str(key)
            node = session.tree.require(f"{path.rstrip('/')}/{name}")
            own = tuple(map(str, variable.dims))
            combined = set(dims) & set(own)
            self.templates[f"{within}/{name}" if within else name] = Template(
                own,
                json.loads(node.user_data),
                means[name],
                "" if combined else _digest(variable),
            )
            for dim in combined:
                self.lengths[dim] = variable.sizes[dim]
                if name == dim:
                    self.coordinates[dim] = decoded(name, variable)


def _digest(variable: xr.Variable) -> str:
    try:
        return digest(np.asarray(variable.values))
    except InvalidInputError as exc:
        if exc.kind is not ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER:
            raise
        # whoever may not read the archive may add to it
        return ""


def _locations(session: Session, path: str) -> set[str]:
    refs = session.chunk_refs(path)
    if refs.locations is None or refs.location is None:
        return set()
    used = np.unique(refs.location)
    return {refs.locations[i] for i in used[used >= 0].tolist()}
