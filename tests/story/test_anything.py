"""Whatever events say, in whatever order, a run is told: nothing raises, nothing is negative, nothing is endless."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.eventfiles import find_event_files
from holdfast.story.gather import gather
from holdfast.story.kinds import KINDS, MARK_OF, NODE_STATES, SERVER_STATES, SILENT, TROUBLES
from holdfast.story.page import page
from holdfast.story.trace import write_trace

NAMES = sorted({*MARK_OF, *TROUBLES, *SILENT, *NODE_STATES})
FIELDS = sorted(
    {"round", "plan", "seats", "spares", "replaced", "voluntary", "lost_s", "noticed_s", "stopped_s", "started_s"}
    | {
        "server",
        "state",
        "action",
        "took_s",
        "bytes",
        "step",
        "reward",
        "ending",
        "code",
        "target",
        "requests_answered",
    }
)
words = st.sampled_from(["", "a", "b", "<i>", *SERVER_STATES, "load", "succeeded", "failed"]) | st.text(max_size=8)
numbers = st.integers(-3, 5) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    words | numbers | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)
times = st.datetimes().map(lambda time: time.isoformat()) | st.integers(0, 59).map(
    lambda second: f"2026-11-20T10:00:{second:02d}.000+00:00"
)
events = st.fixed_dictionaries(
    {
        "time": times | words,
        "clock_s": st.floats(0, 100) | st.floats(allow_nan=False, allow_infinity=False),
        "process": st.sampled_from(["agent-n0", "agent-n1", "publisher", "sync-s", "consumer-c"]) | words,
        "event": st.sampled_from(NAMES) | words,
    },
    optional={
        "version": words | st.none(),
        "reason": words,
        "fields": st.dictionaries(st.sampled_from(FIELDS), values),
    },
)


@given(st.lists(st.lists(events, max_size=9), min_size=1, max_size=3))
def test_whatever_events_say_a_run_is_told(files: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for number, said in enumerate(files):
            text = "".join(json.dumps(event) + "\n" for event in said)
            pathlib.Path(directory, f"{number}.jsonl").write_text(text)
        found = find_event_files([pathlib.Path(directory)])
        run = gather(found)
        parts: list[str] = []
        write_trace(found, parts.append, title="run")
    assert run.end_s >= run.start_s
    for lane in run.lanes:
        assert lane.bars.keys() <= KINDS.keys()
        for bars in lane.bars.values():
            assert all(bar[1] >= bar[0] and bar[2] >= 1 and bar[3] >= 0 for bar in bars)
    for round_ in run.rounds:
        assert all(phase.took_s >= 0 for phase in round_.phases)
    assert page(run, "run", "1").endswith("</html>\n")
    for event in json.loads("".join(parts))["traceEvents"]:
        assert event.get("dur", 0) >= 0
