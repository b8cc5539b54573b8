"""The table of invariants in ARCHITECTURE.md says what is there: the code, the tests and the mutants of each."""

from __future__ import annotations

import fnmatch
import pathlib
import re
from dataclasses import dataclass

import pytest

from tests.mutants.lists import ALL, LISTS, MUTANTS, Mutant

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
WANTED = [*(f"I{n}" for n in range(1, 10)), *(f"S{n}" for n in range(1, 7)), *(f"M{n}" for n in range(1, 8))]
CODE = re.compile(r"`([^`]+)`")


def _section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@dataclass(frozen=True)
class Row:
    """One invariant. `code` below src/holdfast, `tests` below tests, `mutants` as the table names them."""

    name: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    mutants: tuple[str, ...]

    def test_places(self) -> list[pathlib.Path]:
        """The folder or file of each of `tests`."""
        return [ROOT / "tests" / (name if "/" not in name else f"{name}.py") for name in self.tests]

    def named(self) -> list[Mutant]:
        """All that `mutants` names."""
        if (listed := next((name for name in self.mutants if name.endswith(".py")), None)) is not None:
            return MUTANTS[listed.removesuffix(".py")]
        return [mutant for mutant in ALL if any(fnmatch.fnmatchcase(mutant.name, name) for name in self.mutants)]


def _rows() -> list[Row]:
    lines = [line.strip("|").split("|") for line in _section("Invariants").splitlines()]
    found = [[cell.strip() for cell in cells] for cells in lines if re.fullmatch(r" [ISM]\d+ ", cells[0])]
    assert all(len(cells) == 6 for cells in found)
    return [
        Row(name, *(tuple(CODE.findall(cell)) for cell in (code, tests, mutants)))
        for name, _, _, code, tests, mutants in found
    ]


ROWS = _rows()


def test_every_invariant_has_its_row() -> None:
    assert [row.name for row in ROWS] == WANTED


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_an_invariant_names_is_there(row: Row) -> None:
    assert row.code
    assert [name for name in row.code if not (ROOT / "src" / "holdfast" / name).is_file()] == []
    assert row.tests
    missing = [place for place in row.test_places() if not (place.is_file() or any(place.glob("test_*.py")))]
    assert missing == []
    assert row.mutants
    known = [*(mutant.name for mutant in ALL), *(f"{name}.py" for name in LISTS)]
    assert [name for name in row.mutants if not fnmatch.filter(known, name)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_mutant_of_its_code_is_caught_by_one_of_its_tests(row: Row) -> None:
    places = row.test_places()
    caught = [
        mutant
        for mutant in row.named()
        if mutant.file in row.code
        and any((ROOT / test.split("::")[0]).is_relative_to(place) for test in mutant.tests for place in places)
    ]
    assert caught


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code_and_names_tests(mutant: Mutant) -> None:
    """Here at once; that its tests notice it is what the long suite of the mutants shows."""
    text = (ROOT / "src" / "holdfast" / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.tests
    assert [test for test in mutant.tests if not (ROOT / test.split("::")[0]).exists()] == []
