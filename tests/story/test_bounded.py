"""However much there is, what is remembered stays small, and adds up to the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.story.bounded import Alike, Bars, Curve


def test_few_bars_are_kept_as_they_are() -> None:
    bars = Bars(10)
    for at_s in range(20):
        bars.add(at_s, 0.5, str(at_s))
    assert [bar[:4] for bar in bars.bars] == [(at_s, at_s + 0.5, 1, 0.5) for at_s in range(20)]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), max_size=200), st.integers(1, 12))
def test_many_bars_melt_and_none_is_lost(made: list[tuple[float, float]], limit: int) -> None:
    bars = Bars(limit)
    for start_s, took_s in made:
        bars.add(start_s, took_s, "")
        assert len(bars.bars) <= 2 * limit
    bars.shrink(limit)
    assert len(bars.bars) <= limit
    assert sum(bar[2] for bar in bars.bars) == len(made)
    assert sum(bar[3] for bar in bars.bars) == pytest.approx(sum(took_s for _, took_s in made))
    assert all(bar[1] >= bar[0] for bar in bars.bars)
    if made:
        assert min(bar[0] for bar in bars.bars) == min(start_s for start_s, _ in made)
        assert max(bar[1] for bar in bars.bars) == pytest.approx(max(start_s + took_s for start_s, took_s in made))


def test_what_lies_apart_stays_apart() -> None:
    bars = Bars(3)
    for start_s in (0, 1, 2, 3, 100, 101, 102, 900, 901):
        bars.add(start_s, 0.0, "")
    bars.shrink(3)
    assert [(bar[0], bar[1], bar[2]) for bar in bars.bars] == [(0, 3, 4), (100, 102, 3), (900, 901, 2)]


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(-1e6, 1e6)), min_size=1, max_size=200))
def test_a_curve_keeps_its_mean_and_its_ends(values: list[tuple[int, float]]) -> None:
    curve = Curve(8)
    for step, value in values:
        curve.add(step, value, float(step))
        assert len(curve.bins) <= 8
    points = curve.points
    assert sum(point[4] for point in points) == len(values)
    assert curve.part(0, 1) == pytest.approx(sum(value for _, value in values) / len(values), abs=1e-6)
    assert min(point[2] for point in points) == min(value for _, value in values)
    assert max(point[3] for point in points) == max(value for _, value in values)
    assert [point[0] for point in points] == sorted(point[0] for point in points)
    assert points[0][0] == min(step for step, _ in values)


def test_the_first_and_the_last_tenth_are_those_of_the_steps() -> None:
    values = [(step, float(step < 10) + 2.0 * (step >= 90)) for step in range(100)]
    random.Random(1).shuffle(values)
    curve = Curve(1000)
    for step, value in values:
        curve.add(step, value, 0.0)
    assert (curve.part(0.0, 0.1), curve.part(0.9, 1.0)) == (1.0, 2.0)
    assert Curve(10).part(0.0, 0.1) is None


def test_what_differs_in_its_numbers_alone_is_alike() -> None:
    alike = Alike(2)
    alike.add("failed", "c", 5.0, "v2", "block 7 has the digest 00ff")
    alike.add("failed", "c", 3.0, "v1", "block 12 has the digest 17ab")
    alike.add("failed", "c", 9.0, "v3", "no such file")
    alike.add("failed", "d", 9.0, "v4", "left out")
    rows = list(alike.rows.values())
    assert rows == [[3.0, 5.0, 2], [9.0, 9.0, 1]]
    assert next(iter(alike.texts.values())) == ("v1", "block 12 has the digest 17ab")
    assert alike.left_out == {"failed": 1}
