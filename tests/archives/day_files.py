"""Small HDF5 files of some days, and what is read of an archive of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from icechunk import Repository, Storage, credentials
from icechunk_dask import VirtualizeReport

UNITS = "days since 2000-01-01"


def write_days(
    path: Path,
    first: int,
    days: int = 4,
    *,
    shift: float = 0,
    group: str | None = None,
    own: int | None = None,
    options: Mapping[str, Any] | None = None,
    copied: bool = False,
    attributes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file of some days.

    Parameters
    ----------
    first, days : int
        The first day, and how many there are.
    shift : float
        Is added to all values of ``t``.
    group, own : optional
        A group with a dimension ``time`` of its own, of another length.
    options : mapping, optional
        Of the dataset ``t``.
    copied : bool
        Whether there is a variable whose filter no codec of Zarr has.
    attributes : mapping, optional
        Of ``t``.
    """
    fresh = path.with_name(path.name + ".new")
    with h5py.File(fresh, "w") as file:
        _days(file, first, days, shift, options or {})
        file["t"].attrs.update(attributes or {})
        if copied:
            values = np.arange(days * 3, dtype="i4").reshape(days, 3) + first + int(shift)
            v = file.create_dataset("v", data=values, chunks=(max(days, 1), 3), scaleoffset=0)
            v.dims[0].attach_scale(file["time"])
            v.dims[1].attach_scale(file["lat"])
        if group is not None and own is not None:
            _days(file.create_group(group), first * own, own * days, shift, {})
    os.replace(fresh, path)
    return path


def _days(
    file: h5py.Group, first: int, days: int, shift: float, options: Mapping[str, Any]
) -> None:
    time = file.create_dataset("time", data=np.arange(first, first + days), maxshape=(None,))
    time.attrs["units"] = UNITS
    time.make_scale("time")
    lat = file.create_dataset("lat", data=np.asarray([10.0, 20.0, 30.0]))
    lat.make_scale("lat")
    values = (first + np.arange(days * 3, dtype="f4") + shift).reshape(days, 3)
    chosen = {"chunks": (4, 3), "compression": "gzip", "shuffle": True, **options}
    t = file.create_dataset("t", data=values, maxshape=(None, 3), **chosen)
    t.dims[0].attach_scale(time)
    t.dims[1].attach_scale(lat)


def content(path: Path, group: str | None = None, **options: Any) -> xr.Dataset:
    """What xarray reads of a file."""
    with xr.open_dataset(path, engine="h5netcdf", group=group, **options) as dataset:
        return dataset.load()


def together(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """What an archive of some files has to be."""
    return xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="equals")


def access(report: VirtualizeReport) -> dict[str, Any]:
    """The permissions that a report names."""
    known = vars(credentials)
    return {prefix: eval(call, dict(known)) for prefix, call in report.access.items()}


def archived(
    place: Path | Storage, report: VirtualizeReport, group: str | None = None, **version: Any
) -> xr.Dataset:
    """What is read of an archive, by the permissions that a report names."""
    target = str(place) if isinstance(place, Path) else place
    repository = Repository.open(target, None, access(report))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_dataset(repository, engine="icechunk", group=group, **version).load()
