"""All the mutants there are, list by list."""

from __future__ import annotations

import importlib
import pathlib

from tests.mutants.drive import Mutant

LISTS = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("*_mutants.py") if path.stem != "test_mutants")
MUTANTS: dict[str, list[Mutant]] = {
    name: list(importlib.import_module(f"tests.mutants.{name}").MUTANTS) for name in LISTS
}
ALL = [mutant for mutants in MUTANTS.values() for mutant in mutants]
