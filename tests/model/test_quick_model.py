"""The state space of the production core at sizes that take a second each; `pytest -m model` explores the rest."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.core import publish
from holdfast.core.sweep import Phase
from tests.model.build import Model
from tests.model.channel import GONE
from tests.model.configurations import QUICK, Configuration
from tests.model.explore import Broken
from tests.model.tables import Ids
from tests.model.world import NAMES, Size


@pytest.mark.parametrize("configuration", QUICK, ids=lambda configuration: configuration.name)
def test_quick_I1_to_I8_hold_in_every_state(configuration: Configuration) -> None:
    model = Model(configuration.size)
    report = model.space.explore(model.start())
    assert report.states > 10_000, "a model of this size that is done so soon explores nothing"


@pytest.mark.parametrize(
    "size",
    [Size(modes=("newest",), stale=0), Size(sweepers=(1,), second_publisher=False)],
    ids=["both publishers", "late reads"],
)
def test_quick_from_every_state_garbage_can_still_be_swept(size: Size) -> None:
    model = Model(size)
    _, levels = model.space.levels(model.start())
    clean = ("nothing can remove what nobody needs any more", model.is_clean)
    assert model.space.stuck(levels, clean) == ""


def test_quick_what_can_happen_in_the_model_does() -> None:
    model = Model(Size(versions=2, modes=("newest",), per_cycle=(2, 1), stale=0, expiry=(1,), lives=(2,)))
    model.space.explore(model.start())
    channels, sweepers, consumers = model.channel.values, model.sweeper.values, model.consumer.values
    assert any(c.status[0] == GONE for c in channels), "a version was removed"
    claims = {c.two.starts_from for c in channels if c.two is not None}
    assert {None, NAMES[0], NAMES[1]} <= claims, "publisher 2 starts from anything"
    assert any(c.one.phase is publish.Phase.FENCED for c in channels), "publisher 1 found itself fenced"
    rewound = [c for c in channels if c.two is not None and c.two.starts_from is not None]
    assert any(c.one.last is not None and c.one.last > c.two.starts_from for c in rewound), "publisher 1 is further"
    assert any(s.machine.phase is Phase.STOPPED for s in sweepers), "a sweeper was fenced"
    assert any(s.late for s in sweepers), "a zombie announced something after the claim"
    assert any(c.machine.rewound for c in consumers), "a consumer followed a rewind"
    assert any(c.life == 2 and c.uses for c in consumers), "a consumer came back"
    assert any(c.over for c in consumers), "a consumer found itself expired"


def test_quick_a_broken_invariant_is_told_as_a_story() -> None:
    """The model itself can fail: here each version counts as garbage that nobody may ever keep."""
    model = Model(Size(modes=("newest",), sweepers=(1,), stale=0))

    def used(ids: list[Ids]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return model.consumer.columns["uses"].of(ids[0]) != 0

    model.space.checks.append(("no version is ever used", used))
    with pytest.raises(Broken) as broken:
        model.space.explore(model.start())
    lines = str(broken.value).splitlines()
    assert lines[0] == "no version is ever used: 3 steps"
    assert "publisher 1 commits c1-s1" in lines[1]
    assert "consumer 1: polls (cycle 1), writes holds={c1-s1}" in lines[2]
    assert "finds c1-s1 right, is given it" in lines[3]
