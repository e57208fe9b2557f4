"""What a stranger wrote steers neither the terminal, nor the notebook, nor the log that shows it.

Every text that a repository can hold is one of the attacks, and everything that shows texts is
called: displays, errors, log lines, and the command line as text and as JSON.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from icechunk import Repository, RepositoryConfig, VirtualChunkContainer, http_store
from icechunk.base.public_url import public_url, url_credentials
from icechunk.base.visible import as_json, in_a_line, visible
from icechunk.cli.app import COMMANDS, main
from icechunk.errors import IcechunkError
from icechunk.format import layout
from icechunk.format.repo_info import decode_repo_info, encode_repo_info
from icechunk.kerchunk import import_references
from icechunk.repository.jobs_status import FailedPart, JobStatus, RunningPart
from icechunk.repository.verification import Damage, Verification
from icechunk.storage import LocalStorage
from icechunk_dask import VirtualizeReport

LATER = datetime.now(UTC) + timedelta(days=1)
ATTACKS = {
    "colours": "a\x1b[31mb",
    "a title": "a\x1b]0;owned\x07b",
    "in one byte": "a\x9b31m\x90b",
    "overwritten": "a\b\b\rb\x7f",
    "turned": "a\u202egnp.\u2066b\u200f",
    "unseen": "a\u200b\u2060\u206a\ufeff\xad\U000e0041\ufffbb",
    "a line": "a\nFORGED b",
    "other lines": "a\u2028FORGED\u2029\x85FORGED",
    "markup": "a<img src=x onerror=alert(1)>\"'&</pre></td><script>b",
    "rich markup": "a[bold red]b[/] :smile: [link=file:///etc]",
}
#: Modules whose commands print what is stored.
PRINTING = {"reading", "contents", "proof"}
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufffb\U000e0041]"
)


class Page(HTMLParser):
    """Refuses elements and attributes that no card has."""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag not in ("img", "script"), tag
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    handle_startendtag = handle_starttag


def harmless(text: str, *, lines: bool = True) -> None:
    assert STEERING.search(text) is None, repr(text)
    if lines:
        # a name in a block of its own is indented
        assert re.search("^FORGED", text, re.MULTILINE) is None, text


def shown(value: Any) -> None:
    for text in (repr(value), str(value), str([value])):
        harmless(text)
    page = getattr(value, "_repr_html_", str)()
    harmless(page, lines=False)
    if page != str(value):
        Page().feed(page)


#: Several at once, for what takes a repository.
TOGETHER = {
    "control": ("colours", "a title", "in one byte", "overwritten", "turned"),
    "lines": ("a line", "other lines"),
    "markup": ("markup", "rich markup"),
}


@pytest.fixture(params=TOGETHER)
def attack(request: pytest.FixtureRequest) -> str:
    return "".join(ATTACKS[name] for name in TOGETHER[request.param])


@pytest.fixture
def place(tmp_path: Path, attack: str) -> LocalStorage:
    """A repository in which everything is called so."""
    config = RepositoryConfig()
    prefix = "http://127.0.0.1:9/"
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, http_store()))
    place = LocalStorage(tmp_path / "repository")
    repository = Repository.create(place, config)
    repository.set_metadata({attack: attack})
    name = attack.replace("/", "")
    session = repository.writable_session("main")
    group = zarr.create_group(session.store, attributes={attack: [attack]})
    options: Any = {"chunks": 2, "dtype": "u1", "dimension_names": [attack]}
    group.create_array(name, shape=4, attributes={attack: {attack: attack}}, **options)[:] = 1
    group.create_array("v", shape=4, compressors=None, **options)
    url = prefix + attack.replace("?", "")
    session.store.set_virtual_ref("v/c/0", url, offset=0, length=2, validate_container=False)
    session.commit(attack, {attack: attack, "more": {attack: [attack]}})
    moving = repository.rearrange_session("main")
    moving.move(f"/{name}", f"/{name}2")
    moving.commit(attack)
    info = decode_repo_info(place.get(layout.REPO_KEY).data, "repo")
    tip = info.branches["main"]
    changed = replace(
        info,
        branches={**info.branches, attack: tip, f"b{attack}": tip},
        tags={attack: min(info.snapshots), f"t{attack}": tip},
        deleted_tags=[attack],
        status=replace(info.status, reason=attack),
    )
    place.put(layout.REPO_KEY, bytes(encode_repo_info(changed)))
    return place


def values(repository: Repository, attack: str) -> Iterator[Any]:
    main = repository.readonly_session("main")
    first = list(repository.ancestry(branch="main"))[-1].id
    yield from (repository, repository.config, repository.status, main, main.store)
    yield from repository.ancestry(branch="main")
    for update in repository.ops_log():
        yield from (update, update.kind)
    yield repository.diff(from_snapshot_id=first, to_branch="main")
    yield repository.ancestry_graph(plain=True)
    yield repository.verify()
    yield repository.jobs
    array = f"/{attack.replace('/', '')}2"
    yield from (repository.annotate(array), main.written_chunks(array), main.chunk_refs(array))
    yield from (repository.chunk_storage_stats(), repository.preview_expiration(LATER))
    yield from (repository.inspect_repo_info(), repository.resolve(f"b{attack}"))
    writable = repository.writable_session(f"b{attack}")
    name = attack.replace("/", "")
    zarr.open_group(writable.store).create_group(f"new{name}", attributes={attack: attack})
    yield from (writable, writable.store, writable.status())


def calls(repository: Repository, attack: str) -> Iterator[Callable[[], Any]]:
    session = repository.readonly_session("main")
    name = attack.replace("/", "")
    yield lambda: repository.readonly_session(ref=attack)
    yield lambda: repository.readonly_session(f"b{attack}"[:-1])
    yield lambda: repository.resolve(f"{attack}~9")
    yield lambda: repository.lookup_branch(f"{attack}?")
    yield lambda: repository.lookup_tag(f"{attack}?")
    yield lambda: repository.create_branch(attack, session.snapshot_id)
    yield lambda: repository.create_tag(attack, session.snapshot_id)
    yield lambda: repository.delete_branch(f"{attack}?")
    yield lambda: repository.jobs.open(attack)
    yield lambda: repository.inspect_snapshot(attack)
    yield lambda: session.chunk_refs(f"/{name}?")
    yield lambda: repository.rearrange_session("main").move(f"/{name}?", "/x")
    yield lambda: repository.writable_session(attack).commit(attack)
    yield lambda: repository.readonly_session("main").virtual.fetch(f"vcc://{attack}/x", 0, 1)
    yield lambda: repository.readonly_session("main").virtual.fetch(f"s3://{attack}/x", 0, 1)
    yield lambda: zarr.open_array(session.store, path="v", mode="r")[:]
    yield lambda: xr.open_dataset(repository.storage, engine="icechunk")["v"].values
    refs = {".zgroup": '{"zarr_format":2}', f"{name}/.zarray": attack, f"{name}/0": [attack, 1]}
    yield lambda: import_references(refs, repository.writable_session("main"))
    for info in (attack, f"base64:{attack}", f"{{{{{attack}}}}}"):
        whole = {"version": 1, "templates": {name: info}, "refs": {"a": info}, "gen": [info]}
        yield lambda w=whole: import_references(w, repository.writable_session("main"))


def test_displays(place: LocalStorage, attack: str) -> None:
    for value in values(Repository.open(place), attack):
        shown(value)


def test_errors_and_logs(
    place: LocalStorage, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "icechunk")
    failed = 0
    for call in calls(Repository.open(place), attack):
        try:
            call()
        except IcechunkError as error:
            failed += 1
            harmless(str(error), lines=False)
            harmless("".join(traceback.format_exception(error)), lines=False)
    assert failed > 10
    for record in caplog.records:
        if record.name.startswith("icechunk"):
            harmless(record.getMessage())
            assert "\n" not in record.getMessage()


@pytest.mark.parametrize("name", ATTACKS)
def test_reports(name: str) -> None:
    """Of what others put into jobs, and of files of an archive."""
    attack = ATTACKS[name]
    running, failed = (
        RunningPart(attack, 1, attack, attack, 1),
        FailedPart([attack], 2, attack, attack, attack, attack),
    )
    shown(running)
    shown(failed)
    lists: Any = ([attack], 1, [running], [failed], [attack], [attack])
    shown(JobStatus(attack, attack, attack, None, *lists))
    shown(Damage(attack, attack, attack, (attack,), (attack,), attack, 1))
    shown(Verification(attack, (Damage(attack, attack, attack),), {}, {}))
    shown(VirtualizeReport(group=attack, failed={attack: attack}, skipped={attack: (attack,)}))


def lines_of(place: LocalStorage, attack: str) -> Iterator[list[str]]:
    tip = Repository.open(place).lookup_branch("main")
    name = attack.replace("/", "")
    yield from (["info"], ["log"], ["log", "--graph"], ["show"], ["tree"], ["ls"], ["ops"])
    yield from (["branch"], ["tag"], ["config"], ["stats"], ["verify"], ["jobs"], ["verify"])
    yield from (["cat"], ["cat", f"{name}2"], ["cat", "v", "-c", "0"], ["chunks", "v"])
    yield from (["inspect", "repo"], ["inspect", "snapshot", tip], ["inspect", "transactions", tip])
    yield from (["diff", "--from", "main~1"], ["diff", "--from", f"@tag.{attack}"])
    yield from (["log", "-r", attack], ["log", "-r", f"{attack}~99"], ["verify", "--sources"])
    yield from (["verify", "--deep", "all"], ["gc", "--older-than", "1d", "--dry-run"])


def test_the_command_line(place: LocalStorage, attack: str) -> None:
    seen = set()
    for command, *arguments in lines_of(place, attack):
        seen.add(command)
        for form in ([], ["--json"]):
            line = [command, place.url.removeprefix("file://"), *arguments, *form]
            result = CliRunner().invoke(main, line)
            assert result.exception is None or isinstance(result.exception, SystemExit)
            if "No such option" in result.stderr:
                continue
            # a message of a commit has lines, and JSON escapes them
            harmless(result.output, lines=command != "show")
            if form and result.exit_code == 0 and "--graph" not in arguments:
                json.loads(result.stdout)
    assert seen >= {name for name, (module, _) in COMMANDS.items() if module in PRINTING}


def test_what_is_left_as_it_is() -> None:
    for text in (
        "plain",
        "zwölf Grad, 気温, 👩\u200d🚀, a\u00a0b",
        "two\nlines\tand a tab",
        "\\x1b",
    ):
        assert visible(text) == text
        assert json.loads(as_json(json.dumps(text, ensure_ascii=False))) == text
    assert in_a_line("a\nb\tc") == r"a\nb\tc"
    for text in ATTACKS.values():
        assert json.loads(as_json(json.dumps(text, ensure_ascii=False))) == text
    # halves of characters cannot be written
    assert visible("\udc80\ud83d").encode() == rb"\udc80\ud83d"


LONG: dict[str, str] = {
    "letters": "b",
    "dots": "a.",
    "schemes": "a://",
    "URLs": "a://b ",
    "colons": "a:",
    "ends": "?#/&",
    "brackets": "[]",
    "controls": "\x1b",
    "directions": "\u202e",
    "lines": "\n",
}


@pytest.mark.parametrize("unit", LONG)
@pytest.mark.parametrize("around", ["{}", "http://{}", "http://{}@h/", "http://h{}@", "http://[{}"])
def test_long_names(unit: str, around: str) -> None:
    """Making them fit to be shown takes as long as they are, and not the square of that."""
    text = around.format(LONG[unit] * (200_000 // len(LONG[unit])))
    assert str(IcechunkError(text))
    public_url(text)
    url_credentials(text)
