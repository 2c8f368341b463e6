"""The page in a real browser: nothing is asked for, nothing complains, nothing sticks out, the plots are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatch.render.html import to_html
from autobatch.render.notebook import framed
from tests.helpers.browser import NAMES, Browser, find_browser
from tests.render.test_page import DOCUMENTS

POINTS = "[...document.querySelectorAll('svg.chart .point')].filter(p => p.getBoundingClientRect().width > 0).length"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
GROUND = "getComputedStyle(document.body).backgroundColor"
# Elements that the page cannot show whole: wider than the window, and in no container that scrolls.
STICKING_OUT = """
[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll, pre, .hidden, .skip') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the PATH")
    with Browser(path, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for number, (name, document) in enumerate(DOCUMENTS.items()):
        found[name] = folder / f"{number}.html"
        found[name].write_text(to_html(document), encoding="utf-8")
    return found


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_is_quiet_and_fits(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool, width: int
) -> None:
    seen = browser.open(pages[name], width=width, dark=dark)
    assert [address for address in seen.requests if not address.startswith("data:")] == [pages[name].as_uri()]
    assert seen.complaints == []
    assert browser.evaluate(OVERFLOW) <= 0
    assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate("document.compatMode") == "CSS1Compat"
    assert browser.evaluate("document.scripts.length") == 0


def test_the_plots_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["gpu"], width=1280)
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 18
    drawn = browser.evaluate(POINTS)
    assert drawn == pages["gpu"].read_text().count('class="point"') > 200
    assert browser.evaluate("Math.min(...[...document.querySelectorAll('svg.chart')].map(s => s.clientHeight))") > 150


def test_the_figures_of_a_run_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["race"], width=390)
    titles = browser.evaluate("[...document.querySelectorAll('figure h3')].map(h => h.innerText)")
    assert titles == [
        "On fresh seeds",
        "Score over training time",
        "Batch sizes and learning rates tried",
        "Throughput",
        "Peak memory",
        "Range test",
        "The budget",
    ]
    assert browser.evaluate(POINTS) == pages["race"].read_text().count('class="point"') > 60
    widths = "[...document.querySelectorAll('svg.chart {}')].map(r => r.getBoundingClientRect().width)"
    (whole,) = browser.evaluate(widths.format(".whole"))
    parts = sum(browser.evaluate(widths.format(".part rect")))
    assert 0.8 * whole < parts <= whole  # the race ends with little of its budget left


def test_letters_in_a_chart_are_readable_on_a_telephone(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["gpu"], width=360)
    scale = browser.evaluate("document.querySelector('svg.chart').getBoundingClientRect().width / 360")
    assert 12 * scale >= 10  # pixels


@pytest.mark.parametrize("name", ["four arms", "race", "tune"])
def test_words_in_a_chart_stay_inside_it(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], width=1280)
    outside = """
    [...document.querySelectorAll('svg.chart')].flatMap(svg => {
      const box = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(t => {
        const b = t.getBoundingClientRect();
        return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1;
      }).map(t => t.textContent);
    })
    """
    assert browser.evaluate(outside) == []


def test_the_scheme_is_the_readers(browser: Browser, pages: dict[str, Path]) -> None:
    grounds = set()
    for dark in (False, True):
        browser.open(pages["cpu"], width=1280, dark=dark)
        grounds.add(browser.evaluate(GROUND))
    assert grounds == {"rgb(255, 255, 255)", "rgb(20, 23, 27)"}


def test_on_paper_it_is_light_and_what_is_folded_is_shown(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["cpu"], width=800, dark=True, printed=True)
    assert browser.evaluate(GROUND) == "rgb(255, 255, 255)"
    folded = "[...document.querySelectorAll('details table')].map(t => t.checkVisibility() && t.clientHeight)"
    heights = browser.evaluate(folded)
    assert len(heights) == 6
    assert all(height > 50 for height in heights)


def test_the_first_stop_of_the_keyboard_skips_to_the_content(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["cpu"], width=1280)
    browser.tab()
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_table_is_told_apart_by_its_caption(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["cpu"], width=360)
    name = browser.evaluate(
        "document.getElementById(document.querySelector('.scroll').getAttribute('aria-labelledby')).innerText"
    )
    assert name.startswith("Every model in every compute mode")
    assert browser.evaluate(
        "document.querySelector('.scroll').scrollWidth > document.querySelector('.scroll').clientWidth"
    )


def test_a_frame_of_a_notebook_shows_its_page_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "notebook.html"
    file.write_text(f"<!DOCTYPE html><title>a</title>{framed(DOCUMENTS['race'])}", encoding="utf-8")
    seen = browser.open(file, width=800)
    asked = [address for address in seen.requests if not address.startswith(("data:", "about:"))]
    assert asked == [file.as_uri()]
    assert seen.complaints == []
    assert browser.evaluate("document.querySelector('iframe').clientHeight") > 400
    assert browser.evaluate("document.querySelector('iframe').srcdoc.includes('Score over training time')")


def test_what_is_checked_here_can_fail(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><title>a</title><div style='width: 3000px'>a</div><img src='http://127.0.0.1:9/image.png'>"
        "<script>console.error('a complaint')</script>"
    )
    seen = browser.open(file, width=360)
    assert "http://127.0.0.1:9/image.png" in seen.requests
    assert any("a complaint" in complaint for complaint in seen.complaints)
    assert browser.evaluate(OVERFLOW) > 0 or browser.evaluate(STICKING_OUT)
