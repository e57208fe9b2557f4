"""Configuration: checks, merging, and the stored form of the Icechunk spec."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from icechunk import config as ic
from icechunk.config.options import Options
from icechunk.errors import ErrorKind, FormatError, IcechunkError, InvalidInputError
from icechunk.format import v1
from icechunk.format.encoding import flexbuf

Split = ic.ManifestSplitCondition
Dim = ic.ManifestSplitDimCondition
Preload = ic.ManifestPreloadCondition

# -- strategies ------------------------------------------------------------------------
names = st.text("abcxyz/.-_é", max_size=8)
regexes = st.sampled_from(["", "a", "^a$", "/group/", "[xy]+", "a|b", "é"])


def unsigned(bits: int, low: int = 0) -> st.SearchStrategy[int]:
    return st.integers(low, 2**bits - 1)


def unset_or(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def options(cls: type, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: unset_or(s) for name, s in fields.items()})


def conditions(leaves: st.SearchStrategy[Any], cls: Any) -> st.SearchStrategy[Any]:
    leaves = leaves | regexes.map(cls.path_matches) | regexes.map(cls.name_matches)
    return st.recursive(
        leaves,
        lambda parts: (
            st.lists(parts, max_size=3).map(cls.or_conditions)
            | st.lists(parts, max_size=3).map(cls.and_conditions)
            | st.tuples(parts, parts).map(lambda ab: ab[0] | ab[1])
            | st.tuples(parts, parts).map(lambda ab: ab[0] & ab[1])
        ),
        max_leaves=5,
    )


counts = unset_or(unsigned(32))
preload_conditions = conditions(
    st.sampled_from([Preload.true(), Preload.false()])
    | st.tuples(counts, counts).map(lambda ab: Preload.num_refs(*ab)),
    Preload,
)
split_conditions = conditions(st.just(Split.AnyArray()), Split)
dim_conditions = unsigned(64).map(Dim.Axis) | regexes.map(Dim.DimensionName) | st.just(Dim.Any())
split_rules = st.dictionaries(
    split_conditions, st.dictionaries(dim_conditions, unsigned(32, 1), max_size=3), max_size=3
)
retries = options(
    ic.StorageRetriesSettings,
    max_tries=unsigned(16, 1),
    initial_backoff_ms=unsigned(32),
    max_backoff_ms=unsigned(32),
)
s3_options = st.builds(
    ic.S3Options,
    region=unset_or(names),
    endpoint_url=unset_or(names),
    allow_http=st.booleans(),
    anonymous=st.booleans(),
    force_path_style=st.booleans(),
    network_stream_timeout_seconds=unset_or(unsigned(32)),
    requester_pays=st.booleans(),
    checksum_algorithm=unset_or(st.sampled_from(ic.ChecksumAlgorithm)),
)
string_maps = unset_or(st.dictionaries(names, names, max_size=2))
Store = ic.ObjectStoreConfig
stores = st.one_of(
    st.just(Store.InMemory()),
    st.builds(Store.LocalFileSystem, names),
    st.builds(Store.S3, s3_options),
    st.builds(Store.S3Compatible, s3_options),
    st.builds(Store.Tigris, s3_options),
    st.builds(Store.Gcs, string_maps),
    st.builds(Store.Azure, string_maps),
    st.builds(Store.Http, string_maps, string_maps),
)
containers = st.builds(ic.VirtualChunkContainer, names, stores, unset_or(names))
configs = options(
    ic.RepositoryConfig,
    inline_chunk_threshold_bytes=unsigned(16),
    get_partial_values_concurrency=unsigned(16),
    compression=options(
        ic.CompressionConfig,
        algorithm=st.just(ic.CompressionAlgorithm.Zstd),
        level=unsigned(8),
    ),
    max_concurrent_requests=unsigned(16),
    caching=options(
        ic.CachingConfig,
        **{f.name: unsigned(64) for f in dataclasses.fields(ic.CachingConfig)},
    ),
    storage=options(
        ic.StorageSettings,
        concurrency=options(
            ic.StorageConcurrencySettings,
            max_concurrent_requests_for_object=unsigned(16, 1),
            ideal_concurrent_request_size=unsigned(64, 1),
        ),
        retries=retries,
        unsafe_use_conditional_create=st.booleans(),
        unsafe_use_conditional_update=st.booleans(),
        unsafe_use_metadata=st.booleans(),
        storage_class=names,
        metadata_storage_class=names,
        chunks_storage_class=names,
        minimum_size_for_multipart_upload=unsigned(64),
        timeouts=options(
            ic.StorageTimeoutSettings,
            **{f.name: unsigned(32) for f in dataclasses.fields(ic.StorageTimeoutSettings)},
        ),
    ),
    virtual_chunk_containers=st.dictionaries(names, containers, max_size=3),
    manifest=options(
        ic.ManifestConfig,
        preload=options(
            ic.ManifestPreloadConfig,
            max_total_refs=unsigned(32),
            preload_if=preload_conditions,
            max_arrays_to_scan=unsigned(32),
        ),
        splitting=split_rules.map(ic.ManifestSplittingConfig.from_dict),
        virtual_chunk_location_compression=options(
            ic.ManifestVirtualChunkLocationCompressionConfig,
            min_num_chunks=unsigned(16),
            dictionary_max_training_samples=unsigned(16),
            dictionary_max_size_bytes=unsigned(32),
            compression_level=st.integers(-(2**31), 2**31 - 1),
        ),
        max_concurrent_manifest_fetches_during_commit=unsigned(16),
    ),
    repo_update_retries=options(ic.RepoUpdateRetryConfig, default=retries),
    num_updates_per_repo_info_file=unsigned(16),
    max_concurrent_decodes=unsigned(16),
)


# -- the stored form -------------------------------------------------------------------
KEYS = {
    "caching",
    "compression",
    "get_partial_values_concurrency",
    "inline_chunk_threshold_bytes",
    "manifest",
    "max_concurrent_decodes",
    "max_concurrent_requests",
    "num_updates_per_repo_info_file",
    "previous_file",
    "repo_update_retries",
    "storage",
    "virtual_chunk_containers",
}

# What the official client 2.3.0 writes for a configuration with everything set.
OFFICIAL_YAML = b"""\
inline_chunk_threshold_bytes: 1
get_partial_values_concurrency: 2
compression: {algorithm: zstd, level: 5}
max_concurrent_requests: 7
max_concurrent_decodes: 12
caching:
  num_snapshot_nodes: 1
  num_chunk_refs: 2
  num_transaction_changes: 3
  num_bytes_attributes: 4
  num_bytes_chunks: 5
storage:
  concurrency: {max_concurrent_requests_for_object: 3, ideal_concurrent_request_size: 4}
  retries: {max_tries: 5, initial_backoff_ms: 6, max_backoff_ms: 7}
  timeouts:
    connect_timeout_ms: 1
    read_timeout_ms: 2
    operation_timeout_ms: 3
    operation_attempt_timeout_ms: 4
  unsafe_use_conditional_update: false
  unsafe_use_conditional_create: true
  unsafe_use_metadata: false
  storage_class: a
  metadata_storage_class: b
  chunks_storage_class: c
  minimum_size_for_multipart_upload: 1000
virtual_chunk_containers:
  http://e/: {name: null, url_prefix: http://e/, store: !http {}}
  http://d/:
    name: null
    url_prefix: http://d/
    store: !http
      k: v
      headers: {h: w}
  file:///x/: {name: null, url_prefix: file:///x/, store: !local_file_system /x}
  gs://d/: {name: gg, url_prefix: gs://d/, store: !gcs {a: b}}
  az://c/: {name: null, url_prefix: az://c/, store: !azure {account: acc}}
  tigris://c/:
    name: null
    url_prefix: tigris://c/
    store: !tigris
      region: null
      endpoint_url: null
      anonymous: false
      allow_http: false
      force_path_style: false
      network_stream_timeout_seconds: null
      requester_pays: false
      checksum_algorithm: crc32c
  s3://c/:
    name: null
    url_prefix: s3://c/
    store: !s3_compatible
      region: us
      endpoint_url: null
      anonymous: false
      allow_http: false
      force_path_style: false
      network_stream_timeout_seconds: 60
      requester_pays: false
      checksum_algorithm: null
  s3://b/:
    name: null
    url_prefix: s3://b/
    store: !s3
      region: us
      endpoint_url: null
      anonymous: false
      allow_http: false
      force_path_style: false
      network_stream_timeout_seconds: 60
      requester_pays: false
      checksum_algorithm: crc64_nvme
manifest:
  preload:
    max_total_refs: 1
    preload_if: !or
    - !and ['true', 'false']
    - !path_matches {regex: x}
    - !name_matches {regex: y}
    - !num_refs {from: !Included 1, to: !Excluded 5}
    - !num_refs {from: Unbounded, to: !Excluded 5}
    - !num_refs {from: !Included 2, to: Unbounded}
    - !num_refs {from: Unbounded, to: Unbounded}
    max_arrays_to_scan: 3
  splitting:
    split_sizes:
    - - !or
        - any_array
        - !and
          - !path_matches {regex: a}
          - !name_matches {regex: b}
      - - {condition: !Axis 0, num_chunks: 3}
        - {condition: !DimensionName z, num_chunks: 4}
        - {condition: Any, num_chunks: 5}
    - - any_array
      - []
  virtual_chunk_location_compression:
    min_num_chunks: 1
    dictionary_max_training_samples: 2
    dictionary_max_size_bytes: 3
    compression_level: 4
  max_concurrent_manifest_fetches_during_commit: 9
previous_file: null
repo_update_retries:
  default: {max_tries: 1, initial_backoff_ms: 2, max_backoff_ms: 3}
num_updates_per_repo_info_file: 11
"""


def test_the_official_stored_form_is_ours() -> None:
    stored = v1.parse_config(OFFICIAL_YAML, "config.yaml")
    config = ic.RepositoryConfig.from_dict(stored)
    assert config.to_dict() == stored
    assert config.manifest is not None
    assert config.manifest.splitting is not None
    assert config.manifest.splitting.to_dict() == {
        Split.AnyArray() | (Split.path_matches("a") & Split.name_matches("b")): {
            Dim.Axis(0): 3,
            Dim.DimensionName("z"): 4,
            Dim.Any(): 5,
        },
        Split.AnyArray(): {},
    }
    assert config.get_virtual_chunk_container("s3://b/") == ic.VirtualChunkContainer(
        "s3://b/", ic.s3_store(region="us", checksum_algorithm=ic.ChecksumAlgorithm.Crc64Nvme)
    )
    assert config.get_virtual_chunk_container("az://c/") == ic.VirtualChunkContainer(
        "az://c/", ic.azure_store(account="acc")
    )


@settings(max_examples=50)
@given(configs)
def test_stored_form_round_trips(config: ic.RepositoryConfig) -> None:
    stored = config.to_dict()
    assert stored.keys() == KEYS
    assert ic.RepositoryConfig.from_dict(stored) == config
    assert flexbuf.loads(flexbuf.dumps(stored), "config") == stored


@settings(max_examples=60)
@given(configs)
def test_stored_form_of_spec_1_round_trips(config: ic.RepositoryConfig) -> None:
    stored = config.to_dict()
    assert v1.parse_config(v1.dump_config(stored), "config.yaml") == stored


def test_nothing_unset_is_stored() -> None:
    assert ic.RepositoryConfig().to_dict() == dict.fromkeys(KEYS)
    only = ic.RepositoryConfig(storage=ic.StorageSettings(storage_class="cold")).to_dict()
    assert {k: v for k, v in only["storage"].items() if v is not None} == {"storage_class": "cold"}


def test_missing_keys_are_unset_and_unknown_ones_ignored() -> None:
    config = ic.RepositoryConfig.from_dict(
        {"caching": {"num_chunk_refs": 5, "novelty": [1]}, "novelty": {"a": 1}}
    )
    assert config == ic.RepositoryConfig(caching=ic.CachingConfig(num_chunk_refs=5))


#: Wrong values, and what the error must name.
BAD: list[tuple[dict[str, Any], str]] = [
    ({"inline_chunk_threshold_bytes": 2**16}, "inline_chunk_threshold_bytes"),
    ({"inline_chunk_threshold_bytes": True}, "inline_chunk_threshold_bytes"),
    ({"compression": {"algorithm": "lz4"}}, "compression.algorithm"),
    ({"compression": []}, "compression"),
    ({"storage": {"retries": {"max_tries": 0}}}, "storage.retries.max_tries"),
    ({"storage": {"unsafe_use_metadata": 1}}, "storage.unsafe_use_metadata"),
    ({"virtual_chunk_containers": {"s3://b/": {"store": "in_memory"}}}, "url_prefix"),
    ({"virtual_chunk_containers": {"x": {"url_prefix": "x", "store": {"ftp": {}}}}}, "x.store"),
    ({"virtual_chunk_containers": {"x": {"url_prefix": "x", "store": {"gcs": {"a": 1}}}}}, "gcs"),
    ({"manifest": {"preload": {"preload_if": "any_array"}}}, "manifest.preload.preload_if"),
    ({"manifest": {"preload": {"preload_if": {"or": ["nope"]}}}}, r"preload_if.or\[0\]"),
    ({"manifest": {"preload": {"preload_if": {"num_refs": {"to": 3}}}}}, "num_refs.to"),
    ({"manifest": {"splitting": {"split_sizes": [["true", []]]}}}, r"split_sizes\[0\]\[0\]"),
    ({"manifest": {"splitting": {"split_sizes": [3]}}}, r"split_sizes\[0\]"),
    (
        {
            "manifest": {
                "splitting": {
                    "split_sizes": [["any_array", [{"condition": "Any", "num_chunks": 0}]]]
                }
            }
        },
        "num_chunks",
    ),
]


@pytest.mark.parametrize(("stored", "named"), BAD)
def test_a_bad_stored_value_is_named(stored: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named) as caught:
        ic.RepositoryConfig.from_dict(stored, "some/repo")
    assert caught.value.kind == ErrorKind.CONFIG_DESERIALIZATION
    assert str(caught.value).startswith("some/repo: ")


any_key = st.sampled_from(
    [
        *sorted(KEYS),
        *("split_sizes", "splitting", "preload", "preload_if", "or", "and", "num_refs"),
        *("url_prefix", "store", "s3", "http", "headers", "retries", "condition", "Axis"),
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names | any_key,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_key, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(KEYS)), anything, max_size=4))
def test_hostile_stored_forms_are_format_errors(stored: dict[str, Any]) -> None:
    try:
        config = ic.RepositoryConfig.from_dict(stored)
    except FormatError:
        return
    assert ic.RepositoryConfig.from_dict(config.to_dict()) == config


def test_deep_conditions_are_refused() -> None:
    stored: Any = "any_array"
    for _ in range(100_000):
        stored = {"or": [stored]}
    with pytest.raises(FormatError, match="nested"):
        ic.RepositoryConfig.from_dict({"manifest": {"splitting": {"split_sizes": [[stored, []]]}}})
    condition = Split.AnyArray()
    with pytest.raises(InvalidInputError, match="deeper"):
        for _ in range(100):
            condition = Split.or_conditions([condition])


def test_a_long_chain_of_conditions_does_not_nest() -> None:
    condition = Split.name_matches("0")
    for i in range(1, 1000):
        condition = condition | Split.name_matches(str(i))
    assert condition.depth == 2
    assert condition.matches("/a/999")


# -- merging ---------------------------------------------------------------------------
@settings(max_examples=25)
@given(configs, configs, configs)
def test_merge_laws(a: Any, b: Any, c: Any) -> None:
    nothing = ic.RepositoryConfig()
    assert a.merge(nothing) == nothing.merge(a) == a.merge(a) == a
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    merged = a.merge(b)
    for field in dataclasses.fields(ic.RepositoryConfig):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if not isinstance(mine, Options):
            assert getattr(merged, field.name) == (mine if theirs is None else theirs)


def test_merge_is_option_by_option_at_every_depth() -> None:
    mine = ic.RepositoryConfig(
        virtual_chunk_containers={"s3://a/": ic.VirtualChunkContainer("s3://a/", ic.s3_store())},
        storage=ic.StorageSettings(retries=ic.StorageRetriesSettings(max_tries=3)),
        manifest=ic.ManifestConfig(
            splitting=ic.ManifestSplittingConfig.from_dict({Split.AnyArray(): {Dim.Any(): 1}})
        ),
    )
    container = ic.VirtualChunkContainer("s3://b/", ic.s3_store())
    theirs = ic.RepositoryConfig(
        virtual_chunk_containers={"s3://b/": container},
        storage=ic.StorageSettings(
            storage_class="cold", retries=ic.StorageRetriesSettings(max_backoff_ms=4)
        ),
        manifest=ic.ManifestConfig(splitting=ic.ManifestSplittingConfig()),
    )
    merged = mine.merge(theirs)
    assert merged.virtual_chunk_containers == {"s3://b/": container}
    assert merged.storage == ic.StorageSettings(
        storage_class="cold", retries=ic.StorageRetriesSettings(max_tries=3, max_backoff_ms=4)
    )
    assert merged.manifest == theirs.manifest


def test_a_merged_config_is_independent_of_its_sources() -> None:
    mine = ic.RepositoryConfig(caching=ic.CachingConfig(num_chunk_refs=1))
    merged = mine.merge(ic.RepositoryConfig())
    assert merged.caching is not None
    merged.caching.num_chunk_refs = 2
    assert mine.caching == ic.CachingConfig(num_chunk_refs=1)


# -- values and assignments ------------------------------------------------------------
@settings(max_examples=25)
@given(configs)
def test_copies_are_equal(config: ic.RepositoryConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config


INTEGER_OPTIONS: list[tuple[type, str, int, int]] = [
    (ic.RepositoryConfig, "inline_chunk_threshold_bytes", 0, 2**16 - 1),
    (ic.RepositoryConfig, "get_partial_values_concurrency", 0, 2**16 - 1),
    (ic.RepositoryConfig, "max_concurrent_requests", 0, 2**16 - 1),
    (ic.RepositoryConfig, "max_concurrent_decodes", 0, 2**16 - 1),
    (ic.RepositoryConfig, "num_updates_per_repo_info_file", 0, 2**16 - 1),
    (ic.CompressionConfig, "level", 0, 255),
    (ic.CachingConfig, "num_bytes_chunks", 0, 2**64 - 1),
    (ic.ManifestPreloadConfig, "max_total_refs", 0, 2**32 - 1),
    (ic.ManifestConfig, "max_concurrent_manifest_fetches_during_commit", 0, 2**16 - 1),
    (ic.ManifestVirtualChunkLocationCompressionConfig, "min_num_chunks", 0, 2**16 - 1),
    (
        ic.ManifestVirtualChunkLocationCompressionConfig,
        "compression_level",
        -(2**31),
        2**31 - 1,
    ),
    (ic.StorageRetriesSettings, "max_tries", 1, 2**16 - 1),
    (ic.StorageRetriesSettings, "max_backoff_ms", 0, 2**32 - 1),
    (ic.StorageConcurrencySettings, "ideal_concurrent_request_size", 1, 2**64 - 1),
    (ic.S3Options, "network_stream_timeout_seconds", 0, 2**32 - 1),
]


@pytest.mark.parametrize(("cls", "name", "low", "high"), INTEGER_OPTIONS)
def test_integers_are_checked_when_made_and_when_set(
    cls: Any, name: str, low: int, high: int
) -> None:
    for good in (low, high, None):
        assert getattr(cls(**{name: good}), name) == good
    for bad in (low - 1, high + 1, True, 1.0, "1", [1]):
        with pytest.raises(InvalidInputError, match=f"{cls.__name__}: {name} must be"):
            cls(**{name: bad})
        made = cls()
        with pytest.raises(InvalidInputError, match=name):
            setattr(made, name, bad)
        assert made == cls()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ic.RepositoryConfig(caching={}), "caching must be a CachingConfig"),
        (lambda: ic.RepositoryConfig(virtual_chunk_containers=[]), "mapping of containers"),
        (lambda: ic.RepositoryConfig(virtual_chunk_containers={"a": 1}), "VirtualChunkContainer"),
        (lambda: ic.RepositoryConfig().set_virtual_chunk_container("s3://b/"), "cont"),
        (lambda: ic.RepositoryConfig().merge(None), "must be a RepositoryConfig"),
        (lambda: ic.CompressionConfig("zstd"), "CompressionAlgorithm"),
        (lambda: ic.VirtualChunkContainer("s3://b/", "s3"), "ObjectStoreConfig"),
        (lambda: ic.VirtualChunkContainer(None, ic.s3_store()), "url_prefix must be a string"),
        (lambda: ic.S3Options(allow_http=None), "allow_http must be True or False"),
        (lambda: Store.S3("us-east-1"), "must be S3Options"),
        (lambda: Store.Gcs({"a": 1}), "'a' must be a string"),
        (lambda: Store.LocalFileSystem(3), "path must be a string"),
        (lambda: Split.path_matches("(("), "regular expression"),
        (lambda: Split.or_conditions([Preload.true()]), "ManifestSplitCondition"),
        (lambda: Preload.num_refs(-1, None), "num_refs"),
        (lambda: Dim.Axis(-1), "axis"),
        (lambda: ic.ManifestSplittingConfig.from_dict([1]), "dict of dicts"),
        (lambda: ic.ManifestSplittingConfig.from_dict({"x": {}}), "ManifestSplitCondition"),
        (
            lambda: ic.ManifestSplittingConfig.from_dict({Split.AnyArray(): {Dim.Any(): 0}}),
            "number of chunks",
        ),
        (lambda: ic.Attribution(client=3), "client must be a string"),
    ],
)
def test_wrong_values_are_named(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_unknown_options_are_refused() -> None:
    config = ic.RepositoryConfig()
    with pytest.raises(AttributeError, match="num_chunks"):
        config.num_chunks = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        ic.RepositoryConfig(num_chunks=3)  # type: ignore[call-arg]


def test_a_text_makes_the_same_again() -> None:
    config = ic.RepositoryConfig(
        inline_chunk_threshold_bytes=12,
        caching=ic.CachingConfig(num_chunk_refs=0),
        storage=ic.StorageSettings(storage_class='a"\\d'),
    )
    names = {"icechunk": ic}
    # the classes of these modules of the official client are in another place here
    text = repr(config).replace("icechunk.storage.", "icechunk.")
    assert eval(text.replace("icechunk.config.", "icechunk."), names) == config
    assert "num_chunk_refs: 0\n" in str(config)
    assert "num_snapshot_nodes: 500000 (default)\n" in str(config)


def test_texts_show_what_is_in_force() -> None:
    effective = ic.RepositoryConfig().effective()
    lines = dict(
        line.strip().removesuffix(" (default)").split(": ")
        for line in str(ic.RepositoryConfig()).splitlines()
        if ": " in line
    )
    for name, value in vars(effective).items():
        if isinstance(value, int) and not isinstance(value, bool) and name in lines:
            assert lines[name] == str(value), name


def test_help_shows_plain_types() -> None:
    for name in dir(ic):
        it = getattr(ic, name)
        if isinstance(it, type) and dataclasses.is_dataclass(it):
            assert "Annotated" not in str(inspect.signature(it)), name
    shown = str(inspect.signature(ic.StorageRetriesSettings))
    assert "max_tries: int | None = None" in shown


def test_texts_of_conditions() -> None:
    assert repr(Split.AnyArray() | Split.name_matches("<")) == (
        "icechunk.config.ManifestSplitCondition.or_conditions(["
        "icechunk.config.ManifestSplitCondition.any_array(), "
        'icechunk.config.ManifestSplitCondition.name_matches("<")])'
    )


def test_containers_are_kept_by_prefix() -> None:
    config = ic.RepositoryConfig()
    container = ic.VirtualChunkContainer("s3://b/", ic.s3_store(), name="n")
    config.set_virtual_chunk_container(container)
    assert config.get_virtual_chunk_container("s3://b/") is container
    assert config.get_virtual_chunk_container("s3://c/") is None
    replaced = ic.VirtualChunkContainer("s3://b/", ic.s3_store(region="x"))
    config.set_virtual_chunk_container(replaced)
    assert config.virtual_chunk_containers == {"s3://b/": replaced}
    config.clear_virtual_chunk_containers()
    assert config.virtual_chunk_containers == {}


@pytest.mark.parametrize(
    ("value", "family"),
    [(Store.InMemory(), Store), (ic.http_store(), Store), (Dim.Any(), Dim), (Dim.Axis(1), Dim)],
)
def test_variants_belong_to_their_family(value: object, family: type) -> None:
    assert isinstance(value, family)
    assert not isinstance(value, Split)


# -- defaults --------------------------------------------------------------------------
def test_effective_defaults_are_those_of_the_spec() -> None:
    effective = ic.RepositoryConfig().effective()
    assert dataclasses.asdict(effective) | {"preload_if": 0, "max_concurrent_decodes": 0} == {
        "inline_chunk_threshold_bytes": 512,
        "get_partial_values_concurrency": 10,
        "compression_level": 3,
        "max_concurrent_requests": 256,
        "max_concurrent_decodes": 0,
        "num_snapshot_nodes": 500_000,
        "num_chunk_refs": 15_000_000,
        "num_transaction_changes": 0,
        "num_bytes_attributes": 0,
        "num_bytes_chunks": 0,
        "preload_max_total_refs": 10_000,
        "preload_if": 0,
        "preload_max_arrays_to_scan": 50,
        "split_sizes": None,
        "location_compression_is_wanted": False,
        "location_compression_min_num_chunks": 1000,
        "location_compression_max_training_samples": 100,
        "location_compression_max_dictionary_size": 2048,
        "location_compression_level": 3,
        "max_concurrent_manifest_fetches_during_commit": 1,
        "repo_update_retries": {
            "max_tries": 100,
            "initial_backoff_ms": 50,
            "max_backoff_ms": 30_000,
        },
        "num_updates_per_repo_info_file": 1000,
        "storage": {
            "max_concurrent_requests_for_object": 18,
            "ideal_concurrent_request_size": 12_582_912,
            "retries": {
                "max_tries": 10,
                "initial_backoff_ms": 100,
                "max_backoff_ms": 180_000,
            },
            "timeouts": dict.fromkeys(
                f.name for f in dataclasses.fields(ic.StorageTimeoutSettings)
            ),
            "use_conditional_create": True,
            "use_conditional_update": True,
            "use_metadata": True,
            "metadata_storage_class": None,
            "chunks_storage_class": None,
            "minimum_size_for_multipart_upload": 104_857_600,
        },
        "virtual_chunk_containers": {},
    }


def test_effective_values_are_those_that_are_set() -> None:
    settings = ic.StorageSettings(
        storage_class="all",
        chunks_storage_class="chunks",
        unsafe_use_metadata=False,
        retries=ic.StorageRetriesSettings(initial_backoff_ms=0),
    ).effective()
    assert settings.chunks_storage_class == "chunks"
    assert settings.metadata_storage_class == "all"
    assert not settings.use_metadata
    assert settings.retries.initial_backoff_ms == 0
    assert settings.retries.max_tries == 10
    effective = ic.RepositoryConfig(inline_chunk_threshold_bytes=0).effective()
    assert effective.inline_chunk_threshold_bytes == 0
    level = ic.RepositoryConfig(compression=ic.CompressionConfig(level=255))
    assert level.effective().compression_level == 22


# -- conditions ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Split.AnyArray(), True),
        (Split.path_matches("rr"), True),
        (Split.path_matches("^arr$"), False),
        (Split.path_matches("^/group/arr$"), True),
        (Split.name_matches("^arr$"), True),
        (Split.name_matches("group"), False),
        (Split.name_matches("ARR"), False),
        (Split.name_matches("(?i)ARR"), True),
        (Split.or_conditions([]), False),
        (Split.and_conditions([]), True),
        (Split.name_matches("x") | Split.path_matches("group"), True),
        (Split.name_matches("x") & Split.path_matches("group"), False),
    ],
)
def test_array_conditions(condition: ic.ManifestSplitCondition, expected: bool) -> None:
    # observed with the official client for an array /group/arr
    assert condition.matches("/group/arr") is expected


@pytest.mark.parametrize(
    ("condition", "counts"),
    [
        (Preload.num_refs(2, 4), [2, 3]),
        (Preload.num_refs(None, 2), [0, 1]),
        (Preload.num_refs(4, None), [4, 5]),
        (Preload.true(), [0, 1, 2, 3, 4, 5]),
        (Preload.false(), []),
    ],
)
def test_preload_conditions(condition: ic.ManifestPreloadCondition, counts: list[int]) -> None:
    assert [n for n in range(6) if condition.matches("/a", n)] == counts


@pytest.mark.parametrize(
    ("stored", "counts"),
    [
        ({"from": {"Excluded": 1}, "to": {"Included": 3}}, [2, 3]),
        ({"from": "Unbounded", "to": "Unbounded"}, [0, 1, 2, 3, 4, 5]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_stored_bounds_of_either_kind(stored: dict[str, Any], counts: list[int]) -> None:
    config = ic.RepositoryConfig.from_dict(
        {"manifest": {"preload": {"preload_if": {"num_refs": stored}}}}
    )
    condition = config.effective().preload_if
    assert [n for n in range(6) if condition.matches("/a", n)] == counts


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Dim.Axis(0), [True, False, False]),
        (Dim.DimensionName("t"), [True, True, False]),
        (Dim.DimensionName("^time$"), [True, False, False]),
        (Dim.Any(), [True, True, True]),
    ],
)
def test_dimension_conditions(condition: Any, expected: list[bool]) -> None:
    names = ("time", "lat", None)
    assert [condition.matches(i, name) for i, name in enumerate(names)] == expected


def test_a_stored_regex_of_another_engine_matches_nothing() -> None:
    stored = {
        "manifest": {"splitting": {"split_sizes": [[{"path_matches": {"regex": r"\p{L}"}}, []]]}}
    }
    config = ic.RepositoryConfig.from_dict(stored)
    ((condition, _),) = config.effective().split_sizes
    assert not condition.matches("/a")
    assert config.to_dict()["manifest"]["splitting"] == stored["manifest"]["splitting"]


# -- containers ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prefix", "store", "problem"),
    [
        ("s3://b/", ic.s3_store(), None),
        ("S3://b/p/", ic.s3_store(s3_compatible=True), None),
        ("tigris://b/", Store.Tigris(ic.S3Options()), None),
        (
            "gs://b/",
            ic.gcs_store({"google_service_account_path": "/k", "skip_signature": "true"}),
            None,
        ),
        ("gcs://b/", ic.gcs_store(), None),
        ("abfs://b/", ic.azure_store(account="a"), None),
        ("https://h/", ic.http_store(headers={"User-Agent": "x"}), None),
        ("file:///d/", ic.local_filesystem_store("/d"), None),
        ("s3://b", ic.s3_store(), "end with a '/'"),
        ("s3://", ic.s3_store(), "bucket"),
        ("s3:///", ic.s3_store(), "bucket"),
        ("file:///", ic.local_filesystem_store("/"), "folder"),
        ("foo/", ic.s3_store(), "serves s3:// locations"),
        ("https://[/", ic.http_store(), "serves http:// and https:// locations"),
        ("gs://b/", ic.s3_store(), "serves s3:// locations"),
        ("memory://b/", Store.InMemory(), "serves no locations"),
        ("https://me:pw@h/", ic.http_store(), "user or password"),
        ("https://h/", ic.http_store(headers={"Authorization": "x"}), "Authorization"),
        ("az://b/", ic.azure_store(account="a", config={"client_secret": "x"}), "client_secret"),
        ("gs://b/", ic.gcs_store({"google_service_account_key": "x"}), "stored in clear"),
    ],
)
def test_containers_are_validated_before_they_are_stored(
    prefix: str, store: ic.AnyObjectStoreConfig, problem: str | None
) -> None:
    config = ic.RepositoryConfig()
    config.set_virtual_chunk_container(ic.VirtualChunkContainer(prefix, store))
    if problem is None:
        config.validate()
    else:
        with pytest.raises(InvalidInputError, match=problem) as caught:
            config.validate()
        assert "me:pw" not in str(caught.value)


@given(st.sampled_from(["token", "X-Api-Key", "AUTHORIZATION", "azure_client_secret"]))
def test_secrets_among_the_options_are_not_printed(name: str) -> None:
    secret = "correct horse battery"
    for store in (ic.http_store({name: secret}), ic.http_store(headers={name: secret})):
        container = ic.VirtualChunkContainer("https://h/", store)
        config = ic.RepositoryConfig(virtual_chunk_containers={"https://h/": container})
        assert secret not in repr(config) + config._repr_html_()
        with pytest.raises(IcechunkError) as caught:
            config.validate()
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"index": [-1]}, "index"),
        ({"index": 3}, "iterable"),
        ({"offset": -1}, "offset"),
        ({"length": 1.5}, "length"),
        ({"location": b"s3://b/k"}, "location"),
        ({"etag_checksum": 3}, "etag_checksum"),
        ({"last_updated_at_checksum": 3}, "time zone"),
    ],
)
def test_virtual_chunk_specs(arguments: dict[str, Any], problem: str) -> None:
    good = {"index": [0, 1], "location": "s3://b/k", "offset": 0, "length": 10}
    assert ic.VirtualChunkSpec(**good).index == [0, 1]
    with pytest.raises(InvalidInputError, match=problem) as caught:
        ic.VirtualChunkSpec(**good | arguments)
    assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF
