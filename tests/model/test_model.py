"""The whole state space of the production core, with everything that may go wrong, and no invariant broken.

`pytest -m model`: about 240 million states, some minutes on two cores (`-n 2`). See configurations.py for what is
explored, world.py for time and late reads, consumers.py, sweepers.py and channel.py for what each may do.
"""

from __future__ import annotations

import pytest

from tests.model.build import Model
from tests.model.configurations import LARGE, SMALL, Configuration

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


@pytest.mark.parametrize("configuration", [*LARGE, *SMALL], ids=lambda configuration: configuration.name)
def test_I1_to_I8_hold_in_every_state(configuration: Configuration) -> None:
    model = Model(configuration.size)
    report = model.space.explore(model.start())
    print(f"{configuration.name}: {report}")
    assert report.states > 100_000, "a model of this size that is done so soon explores nothing"
