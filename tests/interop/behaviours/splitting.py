"""Manifests that are split by rules of all kinds."""

from __future__ import annotations

from typing import Any

import zarr

import icechunk
from tests.interop.base import create
from tests.interop.behaviours.table import BEHAVIOURS, behaviour, root_of

Rules = list[tuple[Any, list[tuple[Any, int]]]]


def _if() -> Any:
    return icechunk.ManifestSplitCondition


def _dim() -> Any:
    return icechunk.ManifestSplitDimCondition


def _every(size: int = 2) -> list[tuple[Any, int]]:
    return [(_dim().Any(), size)]


#: Rules by name; made when they are used.
RULES: dict[str, Any] = {
    "any_array": lambda: [(_if().AnyArray(), _every())],
    "name": lambda: [(_if().name_matches("^t$"), _every())],
    "part_of_a_name": lambda: [(_if().name_matches("t"), _every())],
    "path": lambda: [(_if().path_matches("^/g/.*$"), _every())],
    "part_of_a_path": lambda: [(_if().path_matches("deep"), _every())],
    "name_with_a_slash": lambda: [(_if().name_matches("g/t"), _every())],
    "and": lambda: [
        (_if().and_conditions([_if().name_matches("t"), _if().path_matches("/g")]), _every())
    ],
    "or": lambda: [
        (_if().or_conditions([_if().name_matches("^t$"), _if().path_matches("deep")]), _every())
    ],
    "and_of_nothing": lambda: [(_if().and_conditions([]), _every())],
    "or_of_nothing": lambda: [(_if().or_conditions([]), _every())],
    "nested": lambda: [
        (
            _if().or_conditions(
                [
                    _if().and_conditions([_if().name_matches("u"), _if().path_matches("deep")]),
                    _if().and_conditions([_if().AnyArray(), _if().name_matches("^t$")]),
                ]
            ),
            _every(3),
        )
    ],
    "operators": lambda: [
        ((_if().name_matches("t") & _if().path_matches("/g")) | _if().name_matches("u"), _every())
    ],
    "first_rule_wins": lambda: [
        (_if().name_matches("t"), [(_dim().Axis(0), 3)]),
        (_if().AnyArray(), [(_dim().Axis(1), 1)]),
    ],
    "axis": lambda: [(_if().AnyArray(), [(_dim().Axis(1), 2)])],
    "axis_that_is_none": lambda: [(_if().AnyArray(), [(_dim().Axis(7), 2)])],
    "dimension_name": lambda: [(_if().AnyArray(), [(_dim().DimensionName("x"), 2)])],
    "part_of_a_dimension_name": lambda: [(_if().AnyArray(), [(_dim().DimensionName("lat"), 2)])],
    "pattern_of_dimension_names": lambda: [
        (_if().AnyArray(), [(_dim().DimensionName("^l.*e$"), 2)])
    ],
    "first_dimension_wins": lambda: [
        (_if().AnyArray(), [(_dim().Axis(0), 4), (_dim().DimensionName("x"), 3), *_every(2)])
    ],
    "any_dimension_first": lambda: [(_if().AnyArray(), [*_every(3), (_dim().Axis(0), 1)])],
    "larger_than_the_array": lambda: [(_if().AnyArray(), _every(1000))],
    "no_rules": lambda: [],
    "no_dimensions": lambda: [(_if().AnyArray(), [])],
}


def _configured(rules: Rules) -> Any:
    splitting = icechunk.ManifestSplittingConfig.from_dict(
        {condition: dict(sizes) for condition, sizes in rules}
    )
    return icechunk.RepositoryConfig(
        inline_chunk_threshold_bytes=8, manifest=icechunk.ManifestConfig(splitting=splitting)
    )


def _write_and_change(repo: Any, name: str) -> Any:
    """Write arrays of several ranks, change them, and keep the rules for who comes next."""
    repo = icechunk.Repository.open(repo.storage, _configured(RULES[name]()))
    repo.save_config()
    session = repo.writable_session("main")
    root = root_of(session)
    for path, shape, dimensions in (
        ("t", (5,), ["x"]),
        ("g/t", (5, 4), ["y", "x"]),
        ("g/deep/u", (3, 4), ["latitude", "lon"]),
        ("g/none", (4, 4), None),
        ("g/zero", (), None),
    ):
        create(root, path, shape, (1,) * len(shape) or (), dimension_names=dimensions)[...] = 1
    session.commit("written")
    session = icechunk.Repository.open(repo.storage).writable_session("main")
    root = root_of(session)
    root["t"].resize((7,))
    root["t"][6] = 2
    root["g/t"][1:3, 1] = 0
    root["g/deep/u"].attrs["x"] = 1
    session.commit("changed")
    files = repo.list_manifest_files(repo.lookup_branch("main"))
    return [str(repo.config.manifest is not None), sorted(file.num_chunk_refs for file in files)]


def _script(name: str) -> Any:
    return lambda repo: _write_and_change(repo, name)


for _name in RULES:
    BEHAVIOURS[f"split_by_{_name}"] = _script(_name)


@behaviour
def rules_are_read_back(repo: Any) -> Any:
    """Stored rules are those that were given."""
    found = {}
    for name, rules in RULES.items():
        given = _configured(rules())
        icechunk.Repository.open(repo.storage, given).save_config()
        stored = icechunk.Repository.fetch_config(repo.storage)
        assert stored is not None
        found[name] = [stored.manifest == given.manifest, stored == given]
    return found


@behaviour
def preload_conditions_change_nothing(repo: Any) -> Any:
    """Arrays read alike, whatever is fetched ahead; and conditions are read back."""
    of = icechunk.ManifestPreloadCondition
    conditions = [
        of.true(),
        of.false(),
        of.num_refs(1, 5),
        of.num_refs(None, 3),
        of.name_matches("split"),
        of.path_matches("^/g"),
        of.and_conditions([of.true(), of.name_matches("a")]),
        of.or_conditions([of.false(), of.num_refs(2, None)]),
    ]
    found = []
    for condition in conditions:
        preload = icechunk.ManifestPreloadConfig(max_total_refs=100, preload_if=condition)
        config = icechunk.RepositoryConfig(manifest=icechunk.ManifestConfig(preload=preload))
        reopened = icechunk.Repository.open(repo.storage, config)
        reopened.save_config()
        stored = icechunk.Repository.fetch_config(repo.storage)
        assert stored is not None and stored.manifest is not None
        root = zarr.open_group(reopened.readonly_session("main").store, mode="r")
        same = stored.manifest.preload == preload
        found.append([same, root["split"][...].tolist()])  # type: ignore[union-attr,index]
    return found
