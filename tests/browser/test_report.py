"""The report in a real browser: it draws what it should, says nothing, asks for nothing, and fits."""

from __future__ import annotations

import pathlib

import pytest

from tests.support.browser import Browser

pytestmark = pytest.mark.browser
Pages = dict[str, pathlib.Path]
LOOKS = [(400, False), (400, True), (1600, False), (1600, True)]
# How many different colours a canvas shows; the colours of its corners aside, what is drawn there.
COLOURS = """(canvas) => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) seen.add(pixels.slice(i, i + 3).join());
  return seen.size;
}"""


@pytest.mark.parametrize(("width", "dark"), [*LOOKS, (320, False), (768, False), (1110, False)])
@pytest.mark.parametrize("name", ["small", "large", "hostile", "empty"])
def test_it_is_silent_asks_for_nothing_and_fits(
    browser: Browser, pages: Pages, name: str, width: int, dark: bool
) -> None:
    browser.look(width, dark=dark)
    browser.open(pages[name])
    assert browser.complaints == []
    assert [address for address in browser.requests if not address.startswith("data:")] == []
    assert browser.evaluate("document.documentElement.dataset.drawn") == "yes"
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
    assert browser.evaluate(f"{wide} && !e.closest('svg')).map((e) => e.outerHTML.slice(0, 80))") == []
    assert (
        browser.evaluate(
            "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        )
        == 0
    )
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelectorAll('img').length") == 0


def test_a_page_that_is_not_silent_or_asks_for_something_is_noticed(browser: Browser, tmp_path: pathlib.Path) -> None:
    (tmp_path / "page.html").write_text("<script>console.log(1); throw 2</script><img src='http://127.0.0.1:9/x'>")
    browser.open(tmp_path / "page.html")
    assert len(browser.complaints) >= 2
    assert browser.requests == ["http://127.0.0.1:9/x"]


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_everything_is_drawn(browser: Browser, pages: Pages, width: int, dark: bool) -> None:
    browser.look(width, dark=dark)
    browser.open(pages["small"])
    assert browser.evaluate("[...document.querySelectorAll('.group > button')].map((b) => b.firstChild.data)") == [
        *("Faults", "Nodes", "Training", "Servers", "Consumers", "Sweepers")
    ]
    drawn = browser.evaluate(f"[...document.querySelectorAll('.group canvas')].map({COLOURS})")
    assert len(drawn) == 6
    assert min(drawn) > 2
    kinds = browser.evaluate("[...document.querySelectorAll('#timeline-legend li')].map((li) => li.dataset.kind)")
    assert {"running", "serving", "load", "hold", "published", "swept", "fault", "trouble"} <= set(kinds)
    phases = browser.evaluate("[...document.querySelectorAll('.phase')].map((g) => g.dataset.phase)")
    assert phases == ["noticed", "stopped", "committed", "started", "trains"] * 2
    assert browser.evaluate("document.querySelectorAll('.curve').length") == 5
    assert browser.evaluate("document.querySelectorAll('.curve .smooth').length") == 6
    assert browser.evaluate("document.querySelector('.curve .raw').getAttribute('d').match(/M/g).length") == 36
    assert browser.evaluate("document.querySelectorAll('.curve .lost').length") == 10
    assert browser.evaluate("document.querySelectorAll('#anomalies tbody tr').length") == 6


def test_dark_is_dark_and_light_is_light(browser: Browser, pages: Pages) -> None:
    shades = []
    for dark in (False, True):
        browser.look(1200, dark=dark)
        browser.open(pages["small"])
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")))
    assert shades[0] > 600
    assert shades[1] < 150


def test_many_lanes_are_folded_and_unfold(browser: Browser, pages: Pages) -> None:
    browser.look(1200)
    browser.open(pages["large"])
    nodes = "document.querySelectorAll('.group')[1]"
    assert browser.evaluate(f"{nodes}.querySelector('button').getAttribute('aria-expanded')") == "false"
    low = browser.evaluate(f"{nodes}.querySelector('canvas').clientHeight")
    browser.evaluate(f"{nodes}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.evaluate(f"{nodes}.querySelector('button').getAttribute('aria-expanded')") == "true"
    assert browser.evaluate(f"{nodes}.querySelector('canvas').clientHeight") >= 158 * 4 > low
    assert browser.complaints == []


def test_a_failover_is_shown_in_the_timeline(browser: Browser, pages: Pages) -> None:
    browser.look(1200)
    browser.open(pages["small"])
    picture = "document.querySelectorAll('.group canvas')[1].toDataURL()"
    whole = browser.evaluate(picture)
    browser.evaluate("document.querySelectorAll('[data-from]')[1].click()")
    near = browser.evaluate(picture)
    assert near != whole
    browser.evaluate("document.getElementById('timeline-plot').focus()")
    browser.press("0")
    assert browser.evaluate(picture) == whole
    browser.press("+")
    assert browser.evaluate(picture) not in (whole, near)


def test_what_lies_under_the_mouse_is_said(browser: Browser, pages: Pages) -> None:
    browser.look(1200, 900)
    browser.open(pages["small"])
    tip = "[document.getElementById('tip').style.visibility, document.getElementById('tip').innerText]"
    box = """(element) => {
      element.scrollIntoView({block: 'center'});
      const {x, y, width, height} = element.getBoundingClientRect();
      return [x, y, width, height];
    }"""
    x, y, width, _ = browser.evaluate(f"({box})(document.querySelectorAll('.group canvas')[1])")
    browser.point(x + width * 0.15, y + 15)
    shown, text = browser.evaluate(tip)
    assert shown == "visible"
    assert "workers run" in text
    assert "agent-node-0" in text
    x, y, width, height = browser.evaluate(f"({box})(document.querySelector('.curve svg'))")
    browser.point(x + width / 2, y + height / 2)
    shown, text = browser.evaluate(tip)
    assert shown == "visible"
    assert "reward: 0." in text
    assert "control_reward: 0." in text
    browser.point(2, 2)
    assert browser.evaluate(tip)[0] == "hidden"


def test_buttons_choose_kinds_of_anomalies(browser: Browser, pages: Pages) -> None:
    browser.look(1200)
    browser.open(pages["small"])
    rows = "[...document.querySelectorAll('#anomalies tbody tr')]"
    shown = f"{rows}.filter((row) => !row.hidden).map((row) => row.dataset.kind)"
    assert len(browser.evaluate(shown)) == 6
    browser.evaluate("document.querySelector('.chips [data-kind=fault]').click()")
    assert browser.evaluate(shown) == ["fault", "fault"]
    browser.evaluate("document.querySelector('.chips [data-kind=fault]').click()")
    assert len(browser.evaluate(shown)) == 6


def test_hostile_text_is_shown_as_text(browser: Browser, pages: Pages) -> None:
    browser.look(1200)
    browser.open(pages["hostile"])
    assert "<script>console.log('run')</script>" in browser.evaluate("document.querySelector('h1').textContent")
    assert "onerror" in browser.evaluate("document.querySelector('#anomalies tbody').textContent")
    assert browser.complaints == []
