"""What tells a version's answers from all others can itself say no."""

from __future__ import annotations

import pytest

from holdfast.core.names import Version
from tests.vllm.crowd import PROMPTS, TOKENS
from tests.vllm.weights import Adapters, Checkpoints

pytestmark = pytest.mark.vllm

ONE, OTHER = (Version(1, step, 0, f"{step:06x}") for step in (901, 902))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_answer_is_pure_of_one_adapter_only(adapters: Adapters, prompt: str) -> None:
    adapters.remember(ONE, 901)
    adapters.remember(OTHER, 902)
    made = {version: tuple(adapters.greedy(version.step, prompt, TOKENS)) for version in (ONE, OTHER)}
    for version, other in ((ONE, OTHER), (OTHER, ONE)):
        assert adapters.is_pure(str(version), prompt, made[version])
        assert not adapters.is_pure(str(version), prompt, made[other])
        half = TOKENS // 2
        assert not adapters.is_pure(str(version), prompt, made[version][:half] + made[other][half:]), "a mixture"


def test_an_answer_is_pure_of_one_checkpoint_only(adapters: Adapters, checkpoints: Checkpoints) -> None:
    """The tokens of an adapter are no checkpoint's."""
    checkpoints.remember(ONE, 1)
    tokens = tuple(adapters.greedy(901, PROMPTS[0], TOKENS))
    assert not checkpoints.is_pure(str(ONE), PROMPTS[0], tokens)
