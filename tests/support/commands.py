"""Commands as documents and scripts show them, held against the real command line."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence

from cyclopts import CycloptsError

from holdfast.cli.main import build

_SHELL_BLOCK = re.compile(r"^```(?:console|bash|sh|shell)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_OPTIONAL = re.compile(r"(?<=\s)\[[^\]\n]*\]")  # in a synopsis: CHANNEL [VERSION | --all]
_REDIRECTED = re.compile(r"\s\d?(?:>>?|<)\s*(?:&\d|\S+)")  # 2>&1, > FILE
_ENDS = frozenset({"|", "&", ";", "(", ")", "&&", "||", ";;"})
_ANYTHING = re.compile(r"[A-Z]|\$\{?\w+\}?")  # N, $PORT


def in_document(text: str) -> list[list[str]]:
    """Words of every `holdfast …` and `torchrun --rdzv-backend=holdfast …` in the shell blocks of a Markdown text.

    What a synopsis has in brackets is left out.
    """
    return [words for block in _SHELL_BLOCK.findall(text) for words in in_script(_OPTIONAL.sub("", block))]


def in_script(text: str) -> list[list[str]]:
    """Words of the same commands in a shell script, whatever stands before them (a prompt, `srun`, `exec`).

    A capital letter or a variable stands for a number, which is a word, too; `"${words[@]}"` for no words.
    """
    lines = [line for line in text.replace("\\\n", " ").splitlines() if "holdfast" in line]
    return [
        ["1" if _ANYTHING.fullmatch(word) else word for word in words if "[@]" not in word]
        for line in lines
        for words in _commands(_split(_REDIRECTED.sub(" ", line)))
    ]


def check(words: Sequence[str]) -> None:
    """AssertionError, with what the command line says, where it does not take these words."""
    program, rest = words[0], list(words[1:])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _parse(program, rest)
    except (CycloptsError, SystemExit) as error:
        raise AssertionError(f"{shlex.join(words)}: {error} {said.getvalue()}") from error


def _parse(program: str, words: list[str]) -> None:
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words)
    elif words[:1] == ["run"]:
        from holdfast.run.launcher import parser

        parser().parse_args(words[1:])
    else:
        build(words).parse_args(words, exit_on_error=False, print_error=False)


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError:  # a quotation mark of prose
        return []


def _commands(words: list[str]) -> Iterator[list[str]]:
    for at, word in enumerate(words):
        program = word.rpartition("/")[2]
        if program == "holdfast" or (program == "torchrun" and "--rdzv-backend=holdfast" in words):
            end = next((i for i, other in enumerate(words[at:], at) if other in _ENDS), len(words))
            if end > at + 1:
                yield [program, *words[at + 1 : end]]
