"""The state machines of Zarr's own test suite, on stores of this project."""

from __future__ import annotations

import inspect
import json

import hypothesis.strategies as st
import pytest
from hypothesis import assume, note, settings
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from hypothesis.strategies import DataObject
from zarr.core.buffer import cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.strategies import node_names

from icechunk import InvalidInputError
from icechunk.config import RepositoryConfig
from icechunk.repository import Repository
from tests.storages import KINDS, new_storage

# dtypes that Zarr has no specification for are its own affair
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest) -> Repository:
    """A repository for all examples; each has a session of its own."""
    config = RepositoryConfig(inline_chunk_threshold_bytes=16)
    return Repository.create(new_storage(request.param, request), config)


@pytest.fixture
def few(request: pytest.FixtureRequest) -> settings:
    """How much is tried: the machines of Zarr draw slowly, and storages differ little here."""
    memory = request.node.callspec.params["repository"] == "memory"
    return settings(max_examples=20 if memory else 10, stateful_step_count=30)


class Hierarchies(ZarrHierarchyStateMachine):
    """Groups and arrays on a session that commits now and then."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        super().__init__(repository.writable_session("main").store)

    @rule()
    def commit(self) -> None:
        note("committing")
        self.store.session.commit("so far", allow_empty=True)
        self.store = self.repository.writable_session("main").store

    # Zarr's own takes every path that begins with the name for one below it, in versions
    # before 3.2
    @precondition(lambda self: bool(self.all_arrays) or bool(self.all_groups))
    @rule(data=st.data())
    def delete_dir(self, data: DataObject) -> None:
        path = self.draw_directory(data)
        note(f"delete_dir with {path=!r}")
        self._sync(self.model.delete_dir(path))
        self._sync(self.store.delete_dir(path))
        gone = {
            node
            for node in self.all_groups | self.all_arrays
            if node == path or node.startswith(path + "/")
        }
        self.all_groups -= gone
        self.all_arrays -= gone


class WithAttributes(Hierarchies):
    """Arrays have attributes. Half of a surrogate pair in them has no form in UTF-8."""

    @rule(data=st.data(), name=node_names)
    def add_array(self, data: DataObject, name: str) -> None:
        try:
            super().add_array(data, name)
        except InvalidInputError as error:
            assume("surrogate" not in str(error))
            raise


def test_hierarchies(repository: Repository, few: settings) -> None:
    # older versions of Zarr draw an array of NumPy, which has no attributes
    older = "array_and_chunks" in inspect.signature(Hierarchies.add_array).parameters
    machine = Hierarchies if older else WithAttributes
    run_state_machine_as_test(lambda: machine(repository), settings=few)


GROUPS = ("", "g", "g/h")
ARRAYS = {"a": (3, 2), "g/b": (4,), "g/h/scalar": ()}


def document(path: str, note: str) -> bytes:
    if path in GROUPS:
        return json.dumps(
            {"zarr_format": 3, "node_type": "group", "attributes": {"note": note}}
        ).encode()
    shape = ARRAYS[path]
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}},
            "attributes": {"note": note},
        }
    ).encode()


def key_of(path: str) -> str:
    return f"{path}/zarr.json".lstrip("/")


class Stores(ZarrStoreStateMachine):
    """Keys and values, as the format can hold them.

    Only `set` and `delete` differ from Zarr's: a value is a document of a node, or a chunk
    of an array that has one, and what is below a node goes when its document does.
    """

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository.writable_session("main").store)

    @rule(data=st.data())
    def set(self, data: DataObject) -> None:
        there = sorted(path for path in ARRAYS if key_of(path) in self.model)
        if there and data.draw(st.booleans(), label="chunk"):
            path = data.draw(st.sampled_from(there))
            index = data.draw(st.tuples(*[st.integers(0, n - 1) for n in ARRAYS[path]]))
            name = "/".join([path, "c", *map(str, index)])
            value = data.draw(st.binary(min_size=1, max_size=40))
        else:
            path = data.draw(st.sampled_from([*GROUPS, *ARRAYS]))
            name, value = key_of(path), document(path, data.draw(st.text(max_size=5)))
        note(f"setting {name!r} to {value!r}")
        self.store.set(name, cpu.Buffer.from_bytes(value))
        self.model[name] = cpu.Buffer.from_bytes(value)

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def delete(self, data: DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        note(f"deleting {name!r}")
        self.store.delete(name)
        folder = name.removesuffix("zarr.json") if name.endswith("zarr.json") else name
        for gone in [key for key in self.model if key.startswith(folder)]:
            if folder != name or gone == name:
                del self.model[gone]


def test_stores(repository: Repository, few: settings) -> None:
    run_state_machine_as_test(lambda: Stores(repository), settings=few)
