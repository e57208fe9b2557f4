r"""Names that mean something else on Windows, told from their text on every system.

Drive letters, other hosts (``\\host``), devices, streams inside of files, dots and blanks that
are cut off. Most tests are of functions of texts; those of folders take the way that Windows
takes, by names, on this system.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from icechunk import LocalStorage, local_filesystem_store
from icechunk.base.windows import is_elsewhere, name_problem
from icechunk.errors import InvalidInputError
from icechunk.kerchunk import locations
from icechunk.storage import folder
from icechunk.virtual import container_storage
from icechunk.virtual.container_storage import open_container
from icechunk.virtual.container_trust import Trust
from icechunk.virtual.locations import container_prefix, normalize_location

DEVICES = ["CON", "PRN", "AUX", "NUL", "COM1", "com9", "LPT1", "lpt0", "CONIN$", "conout$", "COM¹"]
EXTENSIONS = ["", ".", ".txt", ".tar.gz", " ", "  .nc", ":", ":stream", "."]
PROBLEMS: dict[str, str] = {
    **{a + b: "device" for a, b in itertools.product(DEVICES, EXTENSIONS)},
    **dict.fromkeys(["C:", "c:x", "x.nc:stream", "x.nc::$DATA", ":x", "x:"], "drive or a stream"),
    **dict.fromkeys(["x.", "x ", "x. ", "x..", ". ", ".. ", "...", " "], "ends with a dot"),
    **dict.fromkeys(["a\\b", "..\\x", "\\", "\\\\host\\share", "a/b"], "more than one segment"),
    **dict.fromkeys(["", ".", ".."], "another folder"),
    **dict.fromkeys(["a?b", "a*", '"a"', "a|b", "<a>", "a\x00", "a\nb"], "character"),
}
FINE = [
    "x",
    "x.nc",
    ".hidden",
    "CONSOLE",
    "nully.txt",
    "COM",
    "COM10",
    "com0x",
    "auxiliary",
    "PROGRA~1",
    "a b",
    "é",
    "0",
    "a$b",
    "lpt",
    "x.con",
]


@pytest.mark.parametrize("name", PROBLEMS)
def test_names_of_no_file(name: str) -> None:
    assert PROBLEMS[name] in (name_problem(name) or "")


@pytest.mark.parametrize("name", FINE)
def test_names_of_files(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("path", "elsewhere"),
    [
        (r"\\host\share\x", True),
        ("//host/share/x", True),
        (r"\/host/share", True),
        (r"\\?\C:\x", True),
        (r"\\.\pipe\x", True),
        (r"\??\C:\x", True),
        (r"\\?\UNC\host\share", True),
        (r"C:\data\x", False),
        ("C:/data//x", False),
        ("C:x", False),
        (r"\data", False),
        ("/data", False),
        ("x", False),
        ("", False),
    ],
)
def test_other_hosts_and_devices(path: str, elsewhere: bool) -> None:
    assert is_elsewhere(path) is elsewhere


# -- in a folder, by the way that Windows takes ------------------------------------------------
OPERATIONS = {
    "get": lambda storage, key: storage.get(key),
    "put": lambda storage, key: storage.put(key, b"x"),
    "put if absent": lambda storage, key: storage.put(key, b"x", if_absent=True),
    "replace": lambda storage, key: storage.put(key, b"x", if_match="1"),
    "delete": lambda storage, key: storage.delete([key]),
    "copy": lambda storage, key: storage.copy(key, "y"),
    "copy to": lambda storage, key: storage.copy("there", key),
    "list": lambda storage, key: list(storage.list(f"{key}/")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_folders(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside is made, and nothing inside that has another name."""
    (tmp_path / "folder").mkdir()
    storage = LocalStorage(tmp_path / "folder")
    storage.put("there", b"x")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(folder, "HAS_OPEN_FOLDERS", False)
    taken = []
    for name in (name for name in PROBLEMS if "/" not in name):
        for key in (name, f"a/{name}", f"{name}/a"):
            try:
                OPERATIONS[operation](storage, key)
            except InvalidInputError:
                continue
            taken.append(key)
        assert sorted(tmp_path.rglob("*")) == before, name
    assert not taken


def test_a_link_out_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is missing is made after it is known where that is."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(folder, "HAS_OPEN_FOLDERS", False)
    with pytest.raises(InvalidInputError, match="leads out"):
        LocalStorage(tmp_path / "folder").put("link/new/x", b"x")
    assert not list((tmp_path / "outside").iterdir())


# -- in locations ------------------------------------------------------------------------------
#: What is normalised to what; None is refused.
LOCATIONS: dict[str, str | None] = {
    "file://host/share/x": None,
    r"file:\\host\share": None,
    r"file:/\host/x": None,
    r"file://\host\x": "file:///host/x",
    "file:///C:/data/x": "file:///C:/data/x",
    r"file:///C:\data\..\x": "file:///C:/x",
    "file:///c:/data/../../../x": "file:///x",
    "file:///data/%5C..%5Cx": "file:///data/%5C..%5Cx",
    "file:////host/share/x": "file:////host/share/x",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_locations(location: str) -> None:
    expected = LOCATIONS[location]
    if expected is None:
        with pytest.raises(InvalidInputError, match="another host"):
            normalize_location(location)
    else:
        assert normalize_location(location) == expected


@pytest.mark.parametrize(
    "prefix",
    ["file:///C:/data/..%5Cprivate/", "file:///C:/data/%5C..%5C/", "file:///C:/data/.. /private/"],
)
def test_prefixes_that_go_up(prefix: str) -> None:
    with pytest.raises(InvalidInputError):
        container_prefix(prefix)


@pytest.mark.parametrize("path", [r"C:\data\x", "C:/data/x", r"\\host\share\x", "c:/x"])
def test_paths_of_windows_elsewhere(path: str) -> None:
    if locations.os.name == "nt":
        pytest.skip("they are paths there")
    for url in (path, f"file://{path}"):
        with pytest.raises(InvalidInputError, match="Windows path"):
            locations.normalizer()(url)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("path", [r"\\host\share", r"\\?\C:\data", r"C:\data"])
def test_containers(path: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hosts are asked only where the caller chose the container."""
    opened: list[str] = []

    class System:
        name = "nt"

    monkeypatch.setattr(container_storage, "os", System)
    monkeypatch.setattr("urllib.request.url2pathname", lambda _: path)
    monkeypatch.setattr(container_storage, "LocalStorage", opened.append)
    store: Any = local_filesystem_store("x")

    def attempt() -> None:
        open_container(store, "file:///d/", None, lambda url: False, Trust(containers=own))

    if own or not is_elsewhere(path):
        attempt()
        assert opened == [path]
    else:
        with pytest.raises(InvalidInputError, match="only you may choose"):
            attempt()
        assert not opened
