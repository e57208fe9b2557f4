"""Which variables of files to take, and their names in the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np

from icechunk import InvalidInputError
from icechunk.kerchunk.attributes import kept_attributes
from icechunk_dask.archives.described import Dataset, FileVariable
from icechunk_dask.archives.parts import group_of

__all__ = ["Selection", "keys_of"]

_T = TypeVar("_T")

#: Attributes that name other variables.
_NAMING: Final = (
    "ancillary_variables",
    "bounds",
    "cell_measures",
    "climatology",
    "coordinates",
    "formula_terms",
    "grid_mapping",
)


@dataclass(frozen=True)
class Selection:
    """Chooses and renames variables. It is sent to workers.

    Attributes
    ----------
    variables : tuple of str or None
        Names, or paths within the file, of the variables to take, together with the coordinates
        that these need. None takes all.
    drop_variables : tuple of str
        Names, or paths within the file, of variables to leave out.
    rename : dict of str to str
        New names of variables and dimensions, by old names or paths.
    drop_attributes : tuple of str
        Names of attributes to leave out, or ``"path:name"`` for the attribute of one variable
        (its new name) or group; the path of the root is empty.
    """

    variables: tuple[str, ...] | None
    drop_variables: tuple[str, ...]
    rename: dict[str, str]
    drop_attributes: tuple[str, ...] = ()

    def unmet(
        self, dataset: Dataset, taken: Dataset, **by_value: Sequence[str]
    ) -> frozenset[tuple[str, str]]:
        """Return arguments and names in them that a dataset does not have.

        Those of `variables` are refused.

        Parameters
        ----------
        dataset, taken : Dataset
            As it is in the file, and what `of` takes from it.
        **by_value : sequence of str
            Other arguments with names of variables that are taken.
        """
        every = dataset.variables
        found = {("drop_variables", name) for name in self.drop_variables}
        found -= {("drop_variables", each) for path in every for each in _names(path)}
        found -= {("drop_variables", each) for path in dataset.dropped for each in _names(path)}
        for name in self.drop_attributes:
            anywhere = (
                *((self._path(path), each.attributes) for path, each in every.items()),
                *((self._path(path), each.odd_attributes) for path, each in every.items()),
                *dataset.groups.items(),
                *dataset.odd_attributes.items(),
            )
            if all(len(kept_attributes(path, own, (name,))) == len(own) for path, own in anywhere):
                found.add(("drop_attributes", name))
        for old in self.rename:
            dims = {dim for each in every.values() for dim in each.dimensions}
            paths = {f"{group_of(path)}/{dim}" for path in every for dim in every[path].dimensions}
            if old not in dims | paths and not any(old in _names(path) for path in every):
                found.add(("rename", old))
        for argument, names in by_value.items():
            for name in names:
                if not any(name in _names(path) for path in taken.variables):
                    found.add((argument, name))
        return frozenset(found)

    def of(self, dataset: Dataset) -> Dataset:
        """Return what is taken from a dataset.

        Raises
        ------
        ValueError
            If it lacks a variable, or two would have the same name.
        """
        found = {
            name: variable
            for name, variable in dataset.variables.items()
            if not _named(name, self.drop_variables)
        }
        groups, odd = dataset.groups, dataset.odd_attributes
        if self.drop_attributes:
            found = {name: self._without(name, variable) for name, variable in found.items()}
            groups = {path: self._kept(path, shown) for path, shown in groups.items()}
            odd = {path: self._kept(path, reasons) for path, reasons in odd.items()}
        if self.variables is not None:
            found = self._chosen(found)
        if self.rename:
            found = self._renamed(found)
        return Dataset(groups, found, odd, dataset.keys, dataset.dropped)

    def _without(self, name: str, variable: FileVariable) -> FileVariable:
        path, document = self._path(name), variable.document
        if document is not None:
            document = {**document, "attributes": self._kept(path, document["attributes"])}
        return replace(
            variable,
            attributes=self._kept(path, variable.attributes),
            odd_attributes=self._kept(path, variable.odd_attributes),
            document=document,
        )

    def _kept(self, path: str, attributes: Mapping[str, _T]) -> dict[str, _T]:
        return kept_attributes(path, attributes, self.drop_attributes)

    def _chosen(self, variables: Mapping[str, FileVariable]) -> dict[str, FileVariable]:
        assert self.variables is not None
        for wanted in self.variables:
            if not any(_named(name, (wanted,)) for name in variables):
                raise ValueError(
                    f"it has no variable {wanted!r}; it has {', '.join(sorted(variables))}"
                )
        kept = [name for name in variables if _named(name, self.variables)]
        for name in kept:  # grows during the loop
            group = group_of(name)
            needed = [*variables[name].dimensions, *_words(variables[name].attributes)]
            for word in needed:
                path = f"{group}/{word}" if group else word
                if path in variables and path not in kept:
                    kept.append(path)
        return {name: variable for name, variable in variables.items() if name in kept}

    def _renamed(self, variables: Mapping[str, FileVariable]) -> dict[str, FileVariable]:
        found: dict[str, FileVariable] = {}
        for name, variable in variables.items():
            group, path = group_of(name), self._path(name)
            if path in found:
                raise ValueError(f"rename makes two variables {path!r}")
            dims = tuple(self._new(dim, f"{group}/{dim}") for dim in variable.dimensions)
            document = variable.document
            if document is not None:
                attributes = self._words_renamed(document["attributes"])
                document = {**document, "attributes": attributes, "dimension_names": list(dims)}
            found[path] = replace(
                variable,
                dimensions=dims,
                attributes=self._words_renamed(variable.attributes),
                document=document,
            )
        return found

    def _path(self, name: str) -> str:
        """Return the new path of the variable that the file has at a path."""
        group, _, last = name.rpartition("/")
        last = self._new(last, name)
        return f"{group}/{last}" if group else last

    def _new(self, name: str, path: str) -> str:
        return self.rename.get(path, self.rename.get(name, name))

    def _words_renamed(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(attributes)
        for key in _NAMING:
            if isinstance(found.get(key), str):
                words = found[key].split()
                # as in "area: cell_area": a word that ends with a colon is not a variable
                words = [w if w.endswith(":") else self.rename.get(w, w) for w in words]
                if words != found[key].split():
                    found[key] = " ".join(words)
        return found


def _names(path: str) -> tuple[str, str]:
    return path, path.rpartition("/")[2]


def _named(path: str, names: tuple[str, ...]) -> bool:
    return any(name in names for name in _names(path))


def _words(attributes: Mapping[str, Any]) -> list[str]:
    return [
        word
        for key in _NAMING
        if isinstance(attributes.get(key), str)
        for word in attributes[key].split()
    ]


def keys_of(filter_by_keys: Any) -> dict[str, Any]:
    """Return keys of GRIB messages, with values or lists of values as Python objects.

    Raises
    ------
    InvalidInputError
        If it is not a mapping of names.
    """
    if filter_by_keys is None:
        return {}
    if not isinstance(filter_by_keys, Mapping) or not all(
        isinstance(key, str) for key in filter_by_keys
    ):
        raise InvalidInputError(
            "filter_by_keys is a mapping of keys of ecCodes to values, such as "
            f"{{'typeOfLevel': 'surface'}}, not {filter_by_keys!r}"
        )
    return {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in filter_by_keys.items()
    }
