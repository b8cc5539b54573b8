"""The troubleshooting page names error codes that exist, commands that parse, and pages that are there."""

from __future__ import annotations

import pathlib
import re

import pytest

from holdfast.core.names import path_problem
from tests.support import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
TEXT = PAGE.read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
IN_SOURCE = set(re.findall(r'code="([a-z0-9_]+)"', SOURCES))

ROWS = [
    line.split(" | ")[0] for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| symptom")
]
CODES = sorted({code for row in ROWS for code in re.findall(r"`([a-z][a-z0-9_]+)`", row)})
INLINE = sorted(set(re.findall(r"`(holdfast [^`]+)`", TEXT)))


@pytest.mark.parametrize("code", CODES)
def test_codes_exist(code: str) -> None:
    assert code in IN_SOURCE or re.fullmatch(r"errno_e[a-z]+", code), f"no error has the code {code}"


def test_the_page_has_many_codes_and_commands() -> None:
    assert len(CODES) > 50
    assert len(INLINE) > 15


@pytest.mark.parametrize("command", INLINE)
def test_commands_parse(command: str) -> None:
    (words,) = commands.in_script(command)
    commands.check(words)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)", TEXT))))
def test_links_lead_somewhere(link: str) -> None:
    assert path_problem(link) is None
    assert (PAGE.parent / link).is_file()
