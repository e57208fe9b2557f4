"""A file, opened once: for the scanner of its kind, and for reading bytes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from icechunk import InvalidInputError
from icechunk.kerchunk.locations import fsspec_url
from icechunk.kerchunk.tables import ChunkTable
from icechunk_dask.archives.classic import open_classic
from icechunk_dask.archives.described import Dataset
from icechunk_dask.archives.grib import open_grib
from icechunk_dask.archives.hdf5 import open_hdf5
from icechunk_dask.archives.parsed import Parser, open_parsed
from icechunk_dask.archives.sources import Source, Sources, kind_of, location_of

__all__ = ["OpenFile"]


@dataclass
class OpenFile:
    """A file while it is open.

    Attributes
    ----------
    source : Source
    datasets : list of Dataset
    """

    source: Source
    datasets: list[Dataset]
    _sources: Sources
    _stack: ExitStack
    _files: dict[str, BinaryIO] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(
        cls,
        sources: Sources,
        url: str,
        *,
        parser: Parser | None = None,
        dropped: Sequence[str] = (),
        filter_by_keys: Mapping[str, Any] | None = None,
    ) -> Iterator[OpenFile]:
        """Open a file once. Its datasets can be read while it is open.

        Parameters
        ----------
        sources : Sources
        url : str
        parser : Parser, optional
            Default: the scanner for the kind of the file.
        dropped : sequence of str
            Paths of variables that are ignored.
        filter_by_keys : mapping, optional
            Which fields of GRIB are taken.

        Raises
        ------
        InvalidInputError
            If the file is damaged, or of another kind than `filter_by_keys` is for.
        """
        source = sources.open(url)
        location = location_of(url)
        with ExitStack() as stack:
            if parser is not None:
                datasets = stack.enter_context(open_parsed(parser, source, sources))
                yield cls(source, datasets, sources, stack)
                return
            file = stack.enter_context(source.opened())
            kind = kind_of(file)
            if filter_by_keys and kind in ("hdf5", "classic"):
                raise InvalidInputError(
                    "filter_by_keys is for GRIB, and it is a NetCDF or HDF5 file"
                )
            file.seek(0)
            # the libraries read local files faster than Python passes them on
            given = source.path if source.is_local else file
            match kind:
                case "hdf5":

                    def may_open(other: str) -> bool:
                        return any(other.startswith(prefix) for prefix in sources.prefixes)

                    opened = open_hdf5(given, location, drop_variables=dropped, may_open=may_open)
                    datasets = [stack.enter_context(opened)]
                case "classic":
                    datasets = [stack.enter_context(open_classic(given, location))]
                case _:
                    fields = open_grib(given, location, filter_by_keys=filter_by_keys)
                    datasets = stack.enter_context(fields)
            yield cls(source, datasets, sources, stack, {location: file})

    def fetch(self, table: ChunkTable, row: int) -> bytes:
        """Return the bytes of a chunk."""
        where = int(table.location[row])
        if where < 0:
            return table.payloads[int((table.location[:row] < 0).sum())]
        location = table.locations[where]
        file = self._files.get(location)
        if file is None:
            self._sources.check_allowed(location)
            opened = self._sources.open(fsspec_url(location)).opened()
            file = self._files[location] = self._stack.enter_context(opened)
        file.seek(int(table.offset[row]))
        return file.read(int(table.length[row]))
