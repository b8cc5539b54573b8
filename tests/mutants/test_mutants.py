"""Every rule is needed: with each one removed, a test fails.

The lists stand in `*_mutants.py` beside this file. `pytest -m mutants tests/mutants -k NAME` runs one.
"""

from __future__ import annotations

import pathlib

import pytest

from tests.mutants.drive import Mutant, compiled, mutate, run
from tests.mutants.lists import ALL, LISTS, MUTANTS

pytestmark = [pytest.mark.mutants, pytest.mark.timeout(400)]

FAILED = 1  # pytest's exit status for failed tests; anything else would prove nothing


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return compiled(tmp_path_factory.mktemp("whole"))


# First, since it takes longest.
@pytest.mark.parametrize("name", LISTS)
def test_the_same_tests_pass_with_every_rule_in_place(name: str, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tests = tuple(sorted({test for mutant in MUTANTS[name] for test in mutant.tests}))
    done = run(mutate(None, whole, tmp_path), tests, tmp_path, hurried=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_removed_rule_is_noticed(mutant: Mutant, whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run(mutate(mutant, whole, tmp_path), mutant.tests, tmp_path, hurried=True)
    assert done.returncode == FAILED, f"nobody noticed: {mutant.rule}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in ALL}) == len(ALL)
