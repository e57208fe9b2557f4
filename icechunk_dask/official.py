"""Steps of a Dask write under the names of the official client.

`store_dask` needs none of them. They serve programs that build the write themselves:
`dask.array.store` with ``return_stored=True`` on targets of a fork, and then one session.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import dask.array as da
import dask.base
import numpy as np

from icechunk import ForkSession
from icechunk.distributed import extract_session, merge_sessions

__all__ = ["computing_meta", "merge_sessions_array_kwargs", "session_merge_reduction"]

P = ParamSpec("P")


def computing_meta(func: Callable[P, Any]) -> Callable[P, Any]:
    """Make a function tell Dask what kind of array it returns.

    Parameters
    ----------
    func : callable
        Called unless the keyword argument ``computing_meta`` is true.

    Returns
    -------
    callable
        Returns an array of one object where Dask asks.
    """

    @functools.wraps(func)
    def answering(*args: P.args, **kwargs: P.kwargs) -> Any:
        if kwargs.get("computing_meta"):
            return np.array([object()], dtype=object)
        return func(*args, **kwargs)

    return answering


def merge_sessions_array_kwargs(
    *sessions: Any, axis: Any = None, keepdims: Any = None
) -> ForkSession:
    """Merge forks, as the aggregation step of a Dask reduction.

    Parameters
    ----------
    *sessions : ForkSession or nested list of ForkSession
    axis, keepdims : any
        Ignored; Dask passes them.
    """
    return merge_sessions(*sessions)


def session_merge_reduction(
    arrays: Any, *, split_every: int | None, **store_kwargs: Any
) -> ForkSession:
    """Compute what `dask.array.store` returned, and merge the sessions of all tasks.

    Parameters
    ----------
    arrays : dask.array.Array or list of dask.array.Array
        Stored with ``compute=False, return_stored=True, load_stored=False`` on targets whose
        store is that of a fork.
    split_every : int or None
        How many sessions to merge at a time.
    **store_kwargs
        For `dask.array.reduction`.

    Returns
    -------
    ForkSession
        To be merged into the session that was forked.

    Raises
    ------
    TypeError
        If `arrays` holds anything but Dask arrays.

    Examples
    --------
    >>> fork = session.fork()  # doctest: +SKIP
    >>> target = zarr.open_array(fork.store, path="a")  # doctest: +SKIP
    >>> stored = da.store(  # doctest: +SKIP
    ...     [array], [target], compute=False, return_stored=True, load_stored=False, lock=False
    ... )
    >>> session.merge(session_merge_reduction(stored, split_every=8))  # doctest: +SKIP
    """
    given = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    for array in given:
        if not isinstance(array, da.Array):
            raise TypeError(f"arrays must be Dask arrays, not {type(array).__name__}")
    merged = [
        da.reduction(
            array,
            name="ice-changeset",
            chunk=computing_meta(extract_session),
            aggregate=computing_meta(merge_sessions_array_kwargs),
            split_every=split_every,
            concatenate=False,
            keepdims=False,
            dtype=object,
            meta=np.array([object()], dtype=object),
            **store_kwargs,
        )
        for array in given
    ]
    return merge_sessions(*dask.base.compute(*merged))
