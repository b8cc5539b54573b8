"""The page: it needs nothing but itself, says everything as text, and obeys nothing that stands in an event."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import pathlib
import re
from typing import Any

import pytest

from holdfast.eventfiles import find_event_files
from holdfast.story.gather import ANOMALIES_MAX, POINTS_MAX, SERIES_MAX, gather
from holdfast.story.kinds import BARS, GROUPS, MARKS
from holdfast.story.page import page
from holdfast.story.rounds import ROUNDS_MAX
from holdfast.story.run import Anomaly, Lane, Round, Run, Series, Totals
from holdfast.story.weave import LANES_MAX
from holdfast.story.words import elapsed, figure, lasting, size
from tests.story.conftest import Scene
from tests.support.manyevents import Scale, write

VOID = {"meta", "link", "br"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--",
    "<![CDATA[",
    "javascript:alert(1)",
    "\u2028\u202e\x00\x1b]0;x\x07",
    "{{x}}${x}`",
)


class Page(html.parser.HTMLParser):
    """The elements of a page, as a browser would find them; fails where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            name = self._open[-1] + ("" if self.tags[-1][1].get("type") is None else "-data")
            self.texts[name] = self.texts.get(name, "") + data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = gather(find_event_files([write(tmp_path_factory.mktemp("run"), Scale())]))
    return page(run, "run42", "0.1.0")


def test_its_policy_allows_its_own_style_and_script_alone(small: str) -> None:
    parsed = Page(small)
    (policy,) = [a["content"] or "" for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.texts[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_it_asks_for_nothing(small: str) -> None:
    parsed = Page(small)
    for _, attributes in parsed.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert [a["href"] for _, a in parsed.tags if "href" in a and not str(a["href"]).startswith("data:")] == []
    for text in (parsed.texts["style"], parsed.texts["script"]):
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(|import\(", text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nothing_that_an_event_says_becomes_markup(scene: Scene, text: str) -> None:
    fields: dict[str, Any] = {
        "server": text, "adapter": text, "action": text, "state": text, "target": text, "code": text, "ending": text,
        "plan": text, "seats": [text], "replaced": {text: text}, "took_s": text, text: 1.0, "step": 1, "round": 1,
    }  # fmt: skip
    names = ("measured", "server_state", "engine_did", "engine_failed", "fault", "refused", "outcome", "running", text)
    for process in ("agent-n0", f"agent-{text}", text, f"sync-{text}"):
        say = scene.file("hostile")
        for place, name in enumerate((*names, "round_proposed", "round_committed", "given", "tombstone")):
            say(float(place), name, text, version=text, **fields)
        for file in scene.write():
            lines = file.read_text().replace('"process":"hostile"', f'"process":{json.dumps(process)}')
            file.with_name(f"{len(list(scene.directory.iterdir()))}.jsonl").write_text(lines)
            file.unlink()
    made = page(gather(find_event_files([scene.directory])), text, "0.1.0")
    parsed = Page(made)
    assert parsed.count("script") == 2
    assert parsed.count("img") == 0
    assert parsed.texts["script"].rstrip().endswith("})();")
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "<!--" not in made
    data = json.loads(parsed.texts["script-data"])
    assert {lane["name"] for lane in data["lanes"]}
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u202e]", made)


def test_the_data_has_what_the_drawings_need(small: str) -> None:
    data = json.loads(Page(small).texts["script-data"])
    assert [kind[0] for kind in data["kinds"]] == [*BARS, *MARKS]
    assert data["groups"] == list(GROUPS)
    for lane in data["lanes"]:
        for kind, flat in lane["bars"]:
            assert 0 <= kind < len(data["kinds"])
            assert len(flat) % 5 == 0
            assert all(isinstance(value, int) for value in flat)
            assert all(0 <= text < len(data["texts"]) for text in flat[4::5])
            assert all(took >= 0 for took in flat[1::5])
    drawn = pathlib.Path(__file__).resolve().parents[2] / "src/holdfast/story/assets/base.js"
    script = drawn.read_text(encoding="utf-8")
    assert [name for name in (*BARS, *MARKS) if f" {name}: [" not in script] == []


def test_its_tables_say_it_all_without_the_script(small: str) -> None:
    text = re.sub(r"<[^>]*>", " ", small[: small.index("<script")])
    for words in (
        "succeeded",
        "node lost: node-1.5f0e9a77 last heard 1.4 s ago",
        "2.29 s",
        "1.38 s",
        "connection refused",
    ):
        assert words in text
    assert small.count("<th ") == small.count('scope="col"')


def test_empty_parts_say_so(scene: Scene) -> None:
    scene.file("publisher")(0.0, "published", version="c000001-s00000001-00000001")
    made = page(scene.run(), "x", "1")
    for words in ("No rounds", "Nothing was measured", "Nothing went wrong", "no job: only a channel"):
        assert words in made
    Page(made)


def test_the_fullest_page_that_can_be_is_bounded() -> None:
    text = "\u4e16 <&>" * 50
    bars = [(float(at), at + 0.5, 3, 0.25, f"{at} {text}") for at in range(6)]
    lane = Lane(name=text[:120], group="Nodes", first_s=0.0, last_s=1e6, bars={"running": bars})
    round_ = Round(number=1, plan="a", kind="failover", reason=text, coordinator=text, start_s=1.0, committed_s=2.0)
    points = [(step, 1.23456789e-7, -1.23456789e-7, 1.23456789e7, 1000, 1e6) for step in range(POINTS_MAX)]
    series = Series(name=text[:120], points=points, num=1, first_tenth=None, last_tenth=None)
    said = {"what": text, "process": text[:120], "version": text[:120], "reason": text, "num": 3}
    anomaly = Anomaly(kind="refused", first_s=0.0, last_s=9.0, **said)
    run = Run(
        start_s=0.0,
        end_s=1e6,
        outcome=("failed", 1, text),
        lanes=(lane,) * LANES_MAX,
        rounds=(round_,) * ROUNDS_MAX,
        series=(series,) * SERIES_MAX,
        anomalies=(anomaly,) * ANOMALIES_MAX,
        num_anomalies={"refused": 1},
        totals=Totals(),
    )
    assert len(page(run, text, "1").encode()) < 14_000_000


def test_words_for_times_and_sizes() -> None:
    assert [lasting(s) for s in (0.0004, 0.0421, 1.384, 9.996, 59.96, 125, 3600, 200_000)] == [
        "0 ms", "42 ms", "1.38 s", "10.0 s", "1 min 0 s", "2 min 5 s", "1 h 0 min", "2 d 7 h",
    ]  # fmt: skip
    assert [elapsed(s) for s in (0, 4.26, 59.96, 3599.96, 86400, -3)] == [
        "0:00.0", "0:04.3", "1:00.0", "1:00:00", "24:00:00", "−0:03.0",
    ]  # fmt: skip
    assert [size(b) for b in (0, 999, 1000, 14_200_000_000)] == ["0 B", "999 B", "1.0 kB", "14.2 GB"]
    assert [figure(x) for x in (0, 0.12345, 12345, 1e9, 1e-9)] == ["0", "0.123", "12\u202f345", "1.0e+09", "1.0e-09"]
