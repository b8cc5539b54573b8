"""Text as it becomes certain: the pieces are the whole, and nothing is given away that a stop string takes back."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.serve.text import UNFINISHED, Detokenizer, Texts
from tests.serve.conftest import Tiny

TOKENS = st.lists(st.integers(0, 511), min_size=1, max_size=40)
STOPS = st.lists(st.text("ab he", min_size=1, max_size=4), max_size=3).map(tuple)


@pytest.fixture(scope="module")
def texts(tiny: Tiny) -> Texts:
    return Texts(tiny.base)


def _stream(texts: Texts, prompt: list[int], made: list[int], stop: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The pieces, and the stop string that ended them."""
    detokenizer = Detokenizer(texts, prompt, stop, include=False, skip=True)
    pieces, found = [], None
    for place, token in enumerate(made):
        found = detokenizer.add(token)
        pieces.append(detokenizer.take(finished=found is not None or place == len(made) - 1))
        if found is not None:
            break
    assert "".join(pieces) == detokenizer.text
    return pieces, found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TOKENS, made=TOKENS)
def test_pieces_are_the_whole(texts: Texts, prompt: list[int], made: list[int]) -> None:
    pieces, _ = _stream(texts, prompt, made, ())
    whole = texts.decode(made, skip_special=True)
    before = texts.decode(prompt, skip_special=True)
    if UNFINISHED not in whole + before:
        assert "".join(pieces) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab he", min_size=1, max_size=60), stop=STOPS)
def test_text_ends_before_the_first_stop_string(texts: Texts, text: str, stop: tuple[str, ...]) -> None:
    pieces, found = _stream(texts, [40], texts.encode(text, special=False), stop)
    places = [text.find(each) for each in stop if each in text]
    assert (found is not None) == bool(places)
    told = "".join(pieces)
    assert text.startswith(told)
    assert not any(each in told for each in stop)
    if found is not None:
        assert text[len(told) :].startswith(found)


def test_characters_of_several_tokens_come_whole(texts: Texts) -> None:
    text = "a é € 𝄞 ok"
    pieces, _ = _stream(texts, [40], texts.encode(text, special=False), ())
    assert "".join(pieces) == text
    assert not any(UNFINISHED in piece for piece in pieces)
    assert "" in pieces
