"""Every card in a real browser, light and dark: it can be read, it fits, and asks for nothing.

The pictures stay in the folder that ``--artefacts`` names: build/artefacts, if it is left out.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs import browser as browsers
from tests.docs.browser import Browser, browser
from tests.docs.cards import cards

#: Of a page without a program around it, as notebooks in both themes have it.
PAGE = """<!doctype html><meta charset="utf-8"><html {attribute}>
<body style="background:{ground};color:{ink};margin:0">{sections}</body></html>
"""
SECTION = '<section id="{name}" style="padding:12px">{html}</section>'
#: How a page says which theme it has: a notebook does, other pages follow the reader's choice.
THEMES = {
    "light": ('data-jp-theme-light="true"', "dark", "#fff", "#111"),
    "dark": ('data-jp-theme-light="false"', "light", "#111", "#ddd"),
    "light as preferred": ("", "light", "#fff", "#111"),
    "dark as preferred": ("", "dark", "#111", "#ddd"),
}
#: What WCAG 2 asks of text of this size.
CONTRAST = 4.5
WIDTH = 900
#: For each section: its box, the least contrast of a text, and what is cut off.
MEASURED = """
(() => {
  const channels = text => {
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length == 4 ? found : [...found, 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => rgb.map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = element => {
    if (element === null) return [255, 255, 255];
    return over(channels(getComputedStyle(element).backgroundColor), ground(element.parentElement));
  };
  const opacity = element => element === null ? 1
    : Number(getComputedStyle(element).opacity) * opacity(element.parentElement);
  const results = {};
  for (const section of document.querySelectorAll("section")) {
    const told = {texts: 0, contrast: 21, palest: "", cut: [], folds: 0};
    const walker = document.createTreeWalker(section, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.textContent.trim();
      const parent = walker.currentNode.parentElement;
      if (!text || parent.closest("style, title") || !parent.getClientRects().length) continue;
      const style = getComputedStyle(parent);
      const ink = channels(parent instanceof SVGElement ? style.fill : style.color);
      ink[3] *= opacity(parent);
      const below = ground(parent);
      const contrast = ratio(over(ink, below), below);
      told.texts += 1;
      if (contrast < told.contrast) [told.contrast, told.palest] = [contrast, text];
    }
    for (const element of section.querySelectorAll("*")) {
      const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
      if (!(element instanceof SVGElement) && !scrolls && element.clientWidth
          && element.scrollWidth > element.clientWidth + 1
          && getComputedStyle(element).overflowX == "hidden")
        told.cut.push(element.outerHTML.slice(0, 200));
    }
    const width = document.documentElement.clientWidth;
    if (section.scrollWidth > width) told.cut.push("the page scrolls sideways");
    for (const each of section.querySelectorAll("details")) {
      const folded = each.scrollHeight;
      each.querySelector("summary").click();
      if (each.scrollHeight != folded) told.folds += 1;
      each.open = true;
    }
    const box = section.getBoundingClientRect();
    Object.assign(told, {x: box.x, y: box.y + scrollY, width: box.width, height: box.height});
    results[section.id] = told;
  }
  return results;
})()
"""
OPENED = """
Object.fromEntries([...document.querySelectorAll("section")].map(s => {
  const box = s.getBoundingClientRect();
  return [s.id, [box.x, box.y + scrollY, box.width, box.height]];
}))
"""


def drawn(thing: Any) -> str:
    """Return what a notebook shows of a thing."""
    html: str = thing._repr_svg_() if hasattr(thing, "_repr_svg_") else thing._repr_html_()
    return html


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[type, str]]:
    """The type and the picture of each thing, by name."""
    found = cards(tmp_path_factory.mktemp("cards"))
    return {name: (type(thing), drawn(thing)) for name, thing in found}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if browsers.found() is None:
        pytest.skip("no browser: Debian's package chromium is one")
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("theme", THEMES)
def test_cards_can_be_read(
    theme: str,
    shown: dict[str, tuple[type, str]],
    page: Browser,
    artefacts: Path,
    tmp_path: Path,
) -> None:
    attribute, scheme, ground, ink = THEMES[theme]
    sections = "".join(SECTION.format(name=n, html=html) for n, (_, html) in shown.items())
    file = tmp_path / "cards.html"
    file.write_text(PAGE.format(attribute=attribute, ground=ground, ink=ink, sections=sections))
    page.requests.clear()
    page.show(file.as_uri(), width=WIDTH, scheme=scheme)
    measured = page.evaluate(MEASURED)
    assert set(measured) == set(shown)
    for name, told in measured.items():
        assert told["texts"], name
        assert told["contrast"] >= CONTRAST, (name, told["palest"], told["contrast"])
        assert told["cut"] == [], name
    assert page.requests == [file.as_uri()]
    # those with parts fold
    assert all(measured[name]["folds"] for name in ("repository", "session", "store", "diff"))
    if attribute:
        for name, box in page.evaluate(OPENED).items():
            png = page.picture(*box)
            assert png.startswith(b"\x89PNG") and len(png) > 1000
            (artefacts / f"{name}-{theme}.png").write_bytes(png)


def test_all_that_is_drawn_is_among_them(shown: dict[str, tuple[type, str]]) -> None:
    # by name: a class with slots is made twice
    drawing = {
        each.__qualname__
        for each in gc.get_objects()
        if isinstance(each, type)
        and str(each.__module__).startswith("icechunk")
        and {"_repr_html_", "_repr_svg_"} & vars(each).keys()
    }
    seen = {base.__qualname__ for cls, _ in shown.values() for base in cls.__mro__}
    assert drawing - seen == set()
