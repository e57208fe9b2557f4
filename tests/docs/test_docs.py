"""The documentation: its pages, links and code, and the tests that it names."""

from __future__ import annotations

import ast
import builtins
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from icechunk import ErrorKind, IcechunkError, errors
from icechunk.cli.app import COMMANDS, main
from tests.programs import Programs
from tests.servers import S3Server

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = DOCS / "pages"
EXAMPLES = (DOCS / "examples", ROOT / "examples")
PROGRAMS = sorted((DOCS / "examples").glob("*.py"))
ALL = sorted(PAGES.rglob("*.md"))
TEXTS = [*ALL, ROOT / "README.md"]

#: A block of code, with its language and what is in it.
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a block is that includes a file, or a region of one.
INCLUDE = re.compile(r'--8<-- "([\w.]+)(?::(\w+))?"\n')
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
TEST = re.compile(r"\btests/[\w/]+\.py(?:::\w+)?")


def name(path: Path) -> str:
    return path.name


class Loader(yaml.SafeLoader):
    """Reads what MkDocs reads."""


Loader.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from navigation(target)


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.load((DOCS / "mkdocs.yml").read_text(), Loader)
    assert sorted(navigation(config["nav"])) == [p.relative_to(PAGES).as_posix() for p in ALL]


@pytest.mark.parametrize("page", ALL, ids=name)
def test_code_is_that_of_programs(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text()):
        found = INCLUDE.fullmatch(text)
        if found is None:
            # nothing runs these
            assert language in ("shell", ""), text
            continue
        (path,) = (folder / found[1] for folder in EXAMPLES if (folder / found[1]).exists())
        if found[2]:
            program = path.read_text()
            for end in ("start", "end"):
                assert program.count(f"# --8<-- [{end}:{found[2]}]\n") == 1, (path, found[2])


def test_every_region_is_shown() -> None:
    shown = {(found[1], found[2]) for page in ALL for found in INCLUDE.finditer(page.read_text())}
    for program in PROGRAMS:
        for region in re.findall(r"\[start:(\w+)\]", program.read_text()):
            assert (program.name, region) in shown


def regions(page: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield the parts of programs that a page shows, in its order."""
    for language, text in BLOCK.findall(page.read_text()):
        found = INCLUDE.fullmatch(text)
        if language == "python" and found is not None and found[2]:
            (path,) = (folder / found[1] for folder in EXAMPLES if (folder / found[1]).exists())
            start, end = (f"# --8<-- [{which}:{found[2]}]\n" for which in ("start", "end"))
            shown = path.read_text().partition(start)[2].partition(end)[0]
            yield found[0], ast.parse(textwrap.dedent(shown.rpartition("\n")[0] + "\n"))


@pytest.mark.parametrize("page", ALL, ids=name)
def test_pages_can_be_followed(page: Path) -> None:
    """What a block uses is made by a block above it, or the page's text says what it is."""
    known = set(dir(builtins)) | set(re.findall(r"`(\w+)`", BLOCK.sub("", page.read_text())))
    for region, tree in regions(page):
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(a.asname or a.name).partition(".")[0] for a in node.names}
            elif isinstance(node, ast.FunctionDef):
                bound |= {node.name, *(arg.arg for arg in node.args.args)}
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
        known |= bound
        missing = {node.id for node in names if isinstance(node.ctx, ast.Load)} - known
        assert not missing, (region, missing)


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", t.lower()).strip()) for t in titles}


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text())):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for test in TEST.findall(page.read_text()):
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file(), test
        if function:
            assert re.search(rf"\bdef {function}\(", (ROOT / path).read_text()), test


def test_modules_of_the_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:[\w*]+/)*[\w*]+\.py)`", text))
    assert len(names) > 90
    packages = [ROOT / name for name in ("icechunk", "icechunk_dask", "icechunk_xarray")]
    for each in names:
        assert any([*package.rglob(each)] for package in packages) or list(ROOT.glob(each)), each


def test_errors_are_all_listed() -> None:
    text = (PAGES / "errors.md").read_text()
    classes = {
        each
        for each in errors.__all__
        if isinstance(value := getattr(errors, each), type) and issubclass(value, IcechunkError)
    }
    assert classes - {"IcechunkError"} <= set(re.findall(r"`(\w+Error)`", text))
    codes = re.findall(r"^\| `([a-z-]+)` \| `(\w+)`", text, re.MULTILINE)
    assert len(codes) > 8
    for code, of in codes:
        assert ErrorKind(code) and of in classes


def test_commands_exist() -> None:
    for page in TEXTS:
        for command in re.findall(r"(?:`|^)icechunk ([a-z-]+) ", page.read_text(), re.MULTILINE):
            assert command in COMMANDS, (page, command)


#: A region of a program, and what it prints.
SHOWN = re.compile(
    r'^```python\n--8<-- "([\w.]+):\w+"\n```\n\nIt prints:\n\n```\n(.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
#: What is another one each time: times, ids, and the folder of the reader.
CHANGES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "TIME"),
    (r"\b[0-9A-HJKMNP-TV-Z]{20}\b", "ID"),
    (r"^([●│ ]+) [0-9A-HJKMNP-TV-Z]{8}\b", r"\1 ID"),
    (r" +$", ""),
)


def fixed(text: str, folder: Path) -> str:
    """Return a text with that taken out."""
    text = text.replace(str(folder), "/home/me")
    for pattern, name in CHANGES:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text.strip()


def test_outputs_belong_to_programs() -> None:
    count = sum(page.read_text().count("\nIt prints:\n") for page in ALL)
    assert count == sum(len(SHOWN.findall(page.read_text())) for page in ALL) > 5


@pytest.mark.parametrize("program", PROGRAMS, ids=name)
def test_programs_run(
    program: Path, tmp_path: Path, programs: Programs, request: pytest.FixtureRequest
) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ICECHUNK"))
    }
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    if "S3_ENDPOINT" in program.read_text():
        server: S3Server = request.getfixturevalue("s3_server")
        environment |= {
            "S3_ENDPOINT": server.endpoint_url,
            "S3_KEY": server.access_key_id,
            "S3_SECRET": server.secret_access_key,
            "S3_BUCKET": server.bucket,
        }
    done = programs.run(program, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.output
    # what a page shows below a block is printed, too
    for page in ALL:
        for name, shown in SHOWN.findall(page.read_text()):
            if name == program.name:
                assert fixed(shown, tmp_path) in fixed(done.output, tmp_path), page
    # what a comment says that a line prints, is printed
    for line in program.read_text().splitlines():
        code, _, said = line.partition("  # ")
        if "print(" in code and re.match(r"[\w.]+ [\w.-]+$", said):
            assert said in done.output


#: A command in a block that shows what it prints, and that.
PRINTED = re.compile(r"^\$ icechunk (.*)\n((?:(?!\$ ).*\n?)*)", re.MULTILINE)


def test_commands_print_what_pages_show(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repositories are those that the programs of the pages make."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for program in ("start.py", "archive.py", "jobs.py", "large_writes.py"):
        made = programs.run(DOCS / "examples" / program, cwd=tmp_path, env=environment)
        assert made.returncode == 0, made.output
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("catalogue")
    monkeypatch.setenv("COLUMNS", "120")

    count = 0
    for page in ALL:
        for language, block in BLOCK.findall(page.read_text()):
            for line, printed in PRINTED.findall(block) if not language else ():
                words = [
                    str(found)
                    for word in line.split()
                    for found in (sorted(Path().glob(word)) if "*" in word else [word])
                ]
                done = CliRunner().invoke(main, words, input="y\n")
                assert done.exit_code == 0, (page, line, done.output)
                assert fixed(done.stdout, tmp_path) == fixed(printed, tmp_path), (page, line)
                count += 1
    assert count > 8
