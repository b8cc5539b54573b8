"""The weight channel over real NFS, with the mount options that most machines have."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from typing import Any

import pytest

from tests.nfs.program import REPLACED_AT, RESUMED_AT, STEPS
from tests.nfs.runner import VERSIONS, BootError, missing, run_on_two_clients

CONSUMERS = ("a-in-place", "b-in-place", "b-staged")
LIMIT_S = 150.0
P50_S = 1.0

pytestmark = [
    pytest.mark.nfs,
    pytest.mark.timeout(LIMIT_S + 30),
    pytest.mark.skipif(bool(missing()), reason=missing() or "real NFS clients can run here"),
]


@functools.cache
def _run(version: str) -> subprocess.CompletedProcess[str] | BootError | subprocess.TimeoutExpired:
    """How one run ended; tried once, however many tests look at it."""
    try:
        return run_on_two_clients(version, [sys.executable, "-m", "tests.nfs.program"], LIMIT_S)
    except (BootError, subprocess.TimeoutExpired) as error:
        return error


def _report(version: str) -> dict[str, Any]:
    done = _run(version)
    if not isinstance(done, subprocess.CompletedProcess):
        raise done
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(params=VERSIONS)
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One run of the program on this version of NFS, which all tests look at."""
    return _report(request.param)


def _place(name: str) -> tuple[int, int]:
    """Cycle and step of a version."""
    return int(name[1:7]), int(name[9:17])


def _published(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["version"]: line for who in ("first", "second") for line in report[who][1] if "version" in line}


def test_nobody_is_told_of_an_error_and_everybody_ends_by_himself(report: dict[str, Any]) -> None:
    assert {who: report[who][0] for who in ("first", "second", *CONSUMERS)} == dict.fromkeys(
        ("first", "second", *CONSUMERS), 0
    )
    assert len(_published(report)) >= STEPS


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_I1_every_version_given_is_right_for_as_long_as_it_is_held(report: dict[str, Any], consumer: str) -> None:
    given = report[consumer][1]
    assert len(given) > STEPS / 4
    assert [line for line in given if not line["right"]] == []
    assert _place(given[-1]["version"]) == (2, STEPS)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_publish_to_hold_takes_a_second_at_most_for_half_of_them(report: dict[str, Any], consumer: str) -> None:
    published = _published(report)
    late_s = sorted(
        line["at_s"] - published[line["version"]]["began_s"]
        for line in report[consumer][1]
        if line["rewound_from"] is None  # else it was published long before it became the newest again
    )
    p50_s, p99_s = statistics.median(late_s), late_s[int(len(late_s) * 0.99)]
    print(f"{consumer}: publish to hold p50 {p50_s * 1000:.0f} ms, p99 {p99_s * 1000:.0f} ms, {len(late_s)} versions")
    assert p50_s <= P50_S


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_I3_consumers_go_back_once_and_are_told(report: dict[str, Any], consumer: str) -> None:
    given = [_place(line["version"]) for line in report[consumer][1]]
    rewinds = [i for i, line in enumerate(report[consumer][1]) if line["rewound_from"] is not None]
    assert len(rewinds) == 1
    before, after = given[: rewinds[0]], given[rewinds[0] :]
    assert before == sorted(set(before))
    assert after == sorted(set(after))
    assert _place(report[consumer][1][rewinds[0]]["rewound_from"]) == before[-1]
    assert before[-1] > (1, RESUMED_AT)
    assert {cycle for cycle, _ in before} == {1}
    assert all(cycle == 2 or step <= RESUMED_AT for cycle, step in after)


def test_I8_whoever_was_replaced_from_the_other_machine_publishes_nothing_more(report: dict[str, Any]) -> None:
    *published, end = report["first"][1]
    assert end["fenced"] == "fenced"
    claim = report["second"][1][0]
    assert _place(claim["starts_from"]) == (1, RESUMED_AT)
    assert len(published) >= REPLACED_AT
    assert [line for line in published if line["began_s"] > claim["claimed_s"]] == []


def test_nothing_is_left_but_the_newest_and_what_is_pinned(report: dict[str, Any]) -> None:
    left = report["left"]
    assert [_place(name) for name in left.pop("versions")] == [(1, RESUMED_AT), (2, STEPS)]
    assert len(left.pop("pins")) == 1
    assert left == {"staging": [], "consumers": [], "sweepers": [], "standing_by": "", "dangling": []}
