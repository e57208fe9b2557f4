"""Names of Dask tasks that tell versions apart."""

from __future__ import annotations

from typing import Any

from xarray import Dataset, Variable

__all__ = ["name_by_version"]


class _Variable(Variable):
    """A variable that is named after what it reads when it is split into Dask tasks.

    xarray names tasks after what was opened: for a URL that is the text, which stays the
    same while a branch moves. Dask takes tasks of one name for one and the same, so the
    difference of two versions would be zero.
    """

    __slots__ = ()

    def chunk(self, chunks: Any = {}, *, from_array_kwargs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: B006
        """Return a plain variable of Dask chunks; see `xarray.Variable.chunk`."""
        from dask.base import tokenize

        options = dict(from_array_kwargs or {})
        if options.get("name"):
            # the data holds the store, and that the snapshot
            options["name"] += f"-{tokenize(self._data)}"
        plain = Variable(self._dims, self._data, self._attrs, self._encoding, fastpath=True)
        return plain.chunk(chunks, from_array_kwargs=options, **kwargs)


def name_by_version(dataset: Dataset) -> Dataset:
    """Return the dataset with variables whose Dask tasks differ from version to version."""
    # as xarray does it itself: public ways would read coordinates to make indexes of them
    named = dataset._replace(
        {
            name: variable
            if variable._in_memory
            else _Variable(
                variable.dims, variable._data, variable.attrs, variable.encoding, fastpath=True
            )
            for name, variable in dataset.variables.items()
        }
    )
    named.set_close(dataset._close)
    return named
