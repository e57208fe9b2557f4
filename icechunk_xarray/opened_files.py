"""Files of any kind that xarray opens, as one dataset to copy; see `icechunk_dask.ingest`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr

from icechunk import InvalidInputError
from icechunk.base.near import near
from icechunk.base.public_url import is_secret, url_credentials
from icechunk.base.texts import counted
from icechunk_dask.archives.sources import Sources
from icechunk_dask.archives.unmet import unmet_name
from icechunk_dask.archives.virtualize import names_of
from icechunk_dask.archives.within import check_within
from icechunk_xarray.copy_checks import Block

__all__ = ["OpenedFiles", "Opening", "refuse_with_engine", "reopened"]

#: Encodings that must agree: else numbers would be rounded to the packing of the first file.
_PACKING: Final = ("scale_factor", "add_offset")
#: Options of cfgrib whose names contain "key" but are no secrets.
_KEYS_OF_GRIB: Final = ("filter_by_keys", "read_keys")


@dataclass(frozen=True)
class Opening:
    """How to open files, and what to take from them.

    Parameters
    ----------
    engine : str
    options : mapping
        For `xarray.open_dataset`. Values must be expressible in JSON, because a call that
        continues the copy opens the files again.
    dim : str
        The dimension along which files are combined.
    expand : bool
        Whether a file without that dimension is one step along it.
    variables : sequence of str or None
    drop_variables : sequence of str
    rename : mapping of str to str
    """

    engine: str
    options: Mapping[str, Any]
    dim: str
    expand: bool = False
    variables: Sequence[str] | None = None
    drop_variables: Sequence[str] = ()
    rename: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        engine: str | None,
        options: Mapping[str, Any] | None,
        dim: str,
        expand_dims: Sequence[str],
        variables: Sequence[str] | None,
        drop_variables: Sequence[str],
        rename: Mapping[str, str] | None,
    ) -> Opening | None:
        """Return what the arguments of `ingest` ask for; None without an engine."""
        if engine is None:
            if options is not None:
                raise InvalidInputError("open_options are those of an engine: pass engine=, too")
            return None
        known = xr.backends.list_engines()
        if engine not in known:
            raise InvalidInputError(
                f"engine is {engine!r}, which xarray does not have here{near(engine, known)}; "
                "install the package that has it, or leave engine= out"
            )
        opening = cls(
            engine,
            dict(options or {}),
            str(dim),
            dim in names_of(expand_dims),
            None if variables is None else names_of(variables),
            names_of(drop_variables),
            dict(rename or {}),
        )
        opening.check()
        return opening

    def check(self) -> None:
        """Refuse options that a later call could not repeat.

        Raises
        ------
        InvalidInputError
        """
        for name, value in self.options.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                raise InvalidInputError(
                    f"open_options[{name!r}] is of type {type(value).__name__}: "
                    "it must be a value that "
                    "JSON has a form for, because a call that goes on opens the files again"
                ) from None
            secret = _secret_in(name, value)
            if secret is not None:
                raise InvalidInputError(
                    f"open_options has a secret, {secret}, which would be stored with the "
                    "repository until the files are copied: leave it out, and let the environment "
                    "have it"
                )
        for name in ("engine", "chunks"):
            if name in self.options:
                raise InvalidInputError(
                    f"open_options has {name!r}, which ingest passes itself: say {name}="
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, as `from_dict` takes them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Opening:
        """Return an object from the result of `to_dict`."""
        return cls(**values)

    def unmet(self, known: set[str]) -> tuple[tuple[str, str], ...]:
        """Return the argument, and a sentence, for each name in arguments that no file has.

        Parameters
        ----------
        known : set of str
            The variables and dimensions of all files.
        """
        given = {"drop_variables": self.drop_variables, "rename": self.rename or {}}
        return tuple(
            (argument, unmet_name(argument, name, known))
            for argument, names in given.items()
            for name in sorted(set(names) - known)
        )

    def open(self, url: str, sources: Sources, seen: set[str]) -> xr.Dataset:
        """Open one file; values are read later, and all of its names are added to `seen`."""
        check_within(sources, url)
        options = dict(self.options)
        if self.engine == "cfgrib" and "indexpath" not in (options.get("backend_kwargs") or {}):
            # cfgrib would load a pickle that lies beside the file, whoever put it there
            options.setdefault("indexpath", "")
        dataset = xr.open_dataset(url, engine=self.engine, chunks={}, **options)
        seen.update(map(str, (*dataset.variables, *dataset.dims)))
        if self.variables is not None:
            missing = [name for name in self.variables if name not in dataset]
            if missing:
                raise InvalidInputError(f"{url} has no variable {missing[0]!r}")
            dataset = dataset[list(self.variables)]
        dataset = dataset.drop_vars(self.drop_variables, errors="ignore")
        known = {*dataset.variables, *dataset.dims}
        renamed = self.rename or {}
        dataset = dataset.rename({old: new for old, new in renamed.items() if old in known})
        if self.dim not in dataset.dims and self.expand:
            dataset = dataset.expand_dims(self.dim)
        if self.dim not in dataset.dims:
            raise InvalidInputError(
                f"{url} has no dimension {self.dim!r}, only {', '.join(map(str, dataset.dims))}: "
                f"say along which to combine files with concat_dims, or expand_dims={self.dim!r}"
            )
        return dataset


def _secret_in(name: str, value: Any) -> str | None:
    """Return the name of an option that holds credentials, None if there is none."""
    if isinstance(value, Mapping):
        if str(name).lower() == "headers" and value:
            return "headers"
        if name in _KEYS_OF_GRIB:
            return None
        found = (_secret_in(str(key), each) for key, each in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_secret_in(name, each) for each in value)), None)
    if not isinstance(value, str) or not value:
        return None
    is_one = (is_secret(name) and name not in _KEYS_OF_GRIB) or url_credentials(value) is not None
    return repr(name) if is_one else None


@dataclass(frozen=True)
class OpenedFiles:
    """Files that fit together, in order.

    Attributes
    ----------
    dataset : xarray.Dataset
        All files, combined along one dimension. Values are read when they are needed.
    blocks : list of Block
        Which steps belong to which file.
    skipped : dict of str to tuple of str
        Files that were left out, and why.
    failed : dict of str to str
        Files that could not be opened, and why.
    unmet : tuple of (str, str)
        What arguments name, and no file has: the argument, and a sentence.
    """

    dataset: xr.Dataset | None
    blocks: list[Block]
    skipped: dict[str, tuple[str, ...]]
    failed: dict[str, str]
    unmet: tuple[tuple[str, str], ...] = ()

    def check_renamed(self) -> None:
        """Refuse old names that no file has: a new archive would lose them for good.

        Raises
        ------
        InvalidInputError
        """
        for argument, sentence in self.unmet:
            if argument == "rename":
                raise InvalidInputError(sentence)

    @classmethod
    def of(
        cls, urls: Sequence[str], opening: Opening, on_mismatch: str, sources: Sources
    ) -> OpenedFiles:
        """Open files, compare each with the first, and sort them.

        Raises
        ------
        InvalidInputError
            If they contradict each other and are not to be left out.
        """
        opened: dict[str, xr.Dataset] = {}
        failed: dict[str, str] = {}
        seen: set[str] = set()
        for url in urls:
            try:
                opened[url] = opening.open(url, sources, seen)
            except InvalidInputError:
                raise
            except Exception as error:  # an engine may raise anything
                failed[url] = f"{type(error).__name__}: {error}"
        order = _sorted(opened, opening.dim)
        if not order:
            return cls(None, [], {}, failed)
        unmet = opening.unmet(seen)
        first = opened[order[0]]
        unpacks = on_mismatch == "materialize"
        compared = {
            url: _differences(first, opened[url], opening.dim, unpacks=unpacks) for url in order[1:]
        }
        wrong = {url: found for url, found in compared.items() if found}
        if wrong and on_mismatch != "skip":
            lines = "\n".join(f"  {url}: {found[0]}" for url, found in list(wrong.items())[:10])
            raise InvalidInputError(
                f"{counted(len(wrong), 'file does', 'files do')} not fit {order[0]}; nothing is "
                f"written:\n{lines}\n"
                "Pass on_mismatch='skip' to leave these files out, drop_variables= to do without "
                "a variable, or on_mismatch='materialize' where only their packing differs"
            )
        kept = [url for url in order if url not in wrong]
        blocks, start = [], 0
        for url in kept:
            stop = start + opened[url].sizes[opening.dim]
            blocks.append(Block(url, start, stop))
            start = stop
        parts = [_unpacked(opened[url], first, opened, kept, opening.dim) for url in kept]
        whole = xr.concat(
            parts,
            opening.dim,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="override",
            combine_attrs="override",
        )
        texts = {
            name: each.astype(object) for name, each in whole.items() if each.dtype.kind == "U"
        }
        whole = whole.assign(texts)
        for name, variable in whole.variables.items():
            variable.encoding = dict(parts[0][name].encoding)
            if variable.dtype.kind in "UO" and np.dtype(variable.encoding.get("dtype")).kind == "U":
                # as long as the longest of these files; those of later ones may be longer
                del variable.encoding["dtype"]
            blocks_of_first = parts[0][name].chunks
            if blocks_of_first is not None and variable.ndim:
                # the encodings of the file, which xarray prefers
                variable.encoding["chunks"] = [max(sizes[0], 1) for sizes in blocks_of_first]
        skipped = {url: tuple(found) for url, found in wrong.items()}
        return cls(whole, blocks, skipped, failed, unmet)


def refuse_with_engine(**options: Any) -> None:
    """Refuse options that only the scanners of `virtualize` understand."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InvalidInputError(
            f"{given[0]} is for files that ingest reads itself, and engine= lets xarray open them: "
            "pass one of them"
        )


def reopened(about: Mapping[str, Any], sources: Sources) -> xr.DataTree:
    """Return the contents of files, opened as they were when their copy began.

    Parameters
    ----------
    about : mapping
        What the job of the copy records of them.
    sources : Sources
        Checks the files before they are opened.

    Raises
    ------
    InvalidInputError
        If one of them can no longer be opened.
    """
    opening = Opening.from_dict(about["opening"])
    found = OpenedFiles.of(about["files"], opening, about["on_mismatch"], sources)
    if found.failed or found.dataset is None:
        url, why = next(iter(found.failed.items()))
        raise InvalidInputError(
            f"{url} cannot be opened any more, and its copy has begun: {why}; bring it back "
            "and call this again"
        )
    return xr.DataTree(found.dataset)


def _sorted(opened: Mapping[str, xr.Dataset], dim: str) -> list[str]:
    """Return the files in the order of their labels, or of their URLs if there are no labels."""
    urls = sorted(opened)
    filled = [url for url in urls if opened[url].sizes[dim]]
    if not all(dim in opened[url].coords for url in filled):
        return filled or urls[:1]
    ends = {url: opened[url][dim].values[[0, -1]] for url in filled}
    try:
        order = sorted(filled, key=lambda url: ends[url][0])
        falling = all(ends[url][0] >= ends[url][1] for url in filled) and any(
            ends[url][0] > ends[url][1] for url in filled
        )
        if falling:
            order.reverse()
        for one, other in pairwise(order):
            past = ends[one][1] <= ends[other][0] if falling else ends[one][1] >= ends[other][0]
            if past:
                raise InvalidInputError(
                    f"{other} begins at {ends[other][0]} along {dim!r}, where {one} has not "
                    f"ended, at {ends[one][1]}: leave one of them out"
                )
    except TypeError as error:
        raise InvalidInputError(
            f"the files cannot be sorted by {dim!r}: {error}; copy those of one kind together"
        ) from error
    return order or urls[:1]


def _differences(first: xr.Dataset, other: xr.Dataset, dim: str, *, unpacks: bool) -> list[str]:
    """Return how a file contradicts the first one."""
    found = []
    for name in [*first.variables, *(n for n in other.variables if n not in first.variables)]:
        if name not in other.variables or name not in first.variables:
            where = "the others" if name in first.variables else "this file"
            found.append(f"{name}: is in {where} only")
            continue
        one, two = first[name].variable, other[name].variable
        if set(one.dims) != set(two.dims):
            found.append(f"{name}: has dimensions {two.dims}, the others {one.dims}")
            continue
        shapes = [{d: n for d, n in each.sizes.items() if d != dim} for each in (one, two)]
        if shapes[0] != shapes[1]:
            found.append(f"{name}: has the sizes {shapes[1]}, the others {shapes[0]}")
        elif dim not in one.dims:
            if not one.equals(two):  # type: ignore[no-untyped-call]
                found.append(f"{name}: has other values, and not the dimension {dim!r}")
        elif one.attrs.get("units") != two.attrs.get("units"):
            units = [each.attrs.get("units") for each in (one, two)]
            found.append(f"{name}: its units are {units[1]!r}, of the others {units[0]!r}")
        elif one.dtype.kind != two.dtype.kind and {one.dtype.kind, two.dtype.kind} - set("iuf"):
            found.append(f"{name}: is {two.dtype}, of the others {one.dtype}")
        elif not unpacks and not _packed_alike(one, two):
            found.append(f"{name}: is packed by {_packing(two)}, of the others {_packing(one)}")
    return found


def _packing(variable: xr.Variable) -> dict[str, Any]:
    return {key: variable.encoding.get(key) for key in _PACKING}


def _packed_alike(one: xr.Variable, two: xr.Variable) -> bool:
    # texts have the length of the longest one
    are_texts = one.dtype.kind == two.dtype.kind == "U"
    return (are_texts or one.dtype == two.dtype) and _packing(one) == _packing(two)


def _unpacked(
    dataset: xr.Dataset,
    first: xr.Dataset,
    opened: Mapping[str, xr.Dataset],
    kept: Sequence[str],
    dim: str,
) -> xr.Dataset:
    """Return a file with variables unpacked where the files pack them differently."""
    result = dataset.copy()
    for name, variable in first.variables.items():
        if dim not in variable.dims:
            continue
        others = [opened[url].variables[name] for url in kept]
        if all(_packed_alike(variable, each) for each in others):
            continue
        kinds = {each.dtype.kind for each in others}
        if not kinds <= set("iuf"):
            continue
        dtype = np.result_type(*(each.dtype for each in others))
        plain = result[name].astype(dtype)
        plain.encoding = {}
        result[name] = plain
    return result
