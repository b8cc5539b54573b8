"""Versions that nobody can use, between good ones: seen before they reach the server, or refused by it once."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.vllm.scene import Scene
from tests.vllm.server import RANK_MAX

pytestmark = pytest.mark.vllm

# More than the server has room for; a tensor that vLLM asks for; one that it does without, and serves something else.
REFUSED: tuple[dict[str, Any], ...] = (
    {"rank": 2 * RANK_MAX},
    {"leave_out": "down_proj.lora_A"},
    {"leave_out": "q_proj.lora_A", "canary": True},
)


def _flip(weights: pathlib.Path) -> None:
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    _replace(weights, bytes(data))


def _truncate(weights: pathlib.Path) -> None:
    _replace(weights, weights.read_bytes()[:-1000])


def _replace(weights: pathlib.Path, data: bytes) -> None:
    """Nothing of it is shared with a copy that was made before."""
    weights.unlink()
    weights.write_bytes(data)


@pytest.mark.timeout(300)
def test_bad_versions_are_passed_over_and_the_run_goes_on(scene: Scene) -> None:
    tap = scene.tap()
    publisher = scene.publisher(keep=3)
    good = scene.publish(publisher, 1, canary=True)
    sync = scene.configured(
        "patience_s = 2.0\n"
        f'[[channels]]\npath = "{scene.place("channel")}"\n'
        f'[[servers]]\nurl = "{tap.url}"\ncanary = true\n'
    )
    sync.until_serves(good)
    with scene.crowd(sync) as crowd:
        damages: tuple[Callable[[pathlib.Path], None], ...] = (_flip, _truncate)
        for step, damage in zip((10, 20), damages, strict=True):
            sync.freeze()  # so that it does not see it before it is damaged
            bad = scene.publish(publisher, step)
            damage(scene.place("channel") / "versions" / str(bad) / "adapter_model.safetensors")
            sync.thaw()
            scene.until_refused(bad)
            assert tap.loads(bad) == 0, "it reached the server"
            assert sync.serves()["version"] == str(good)
            good = scene.publish(publisher, step + 5)
            sync.until_serves(good)
        for step, options in zip((30, 40, 50), REFUSED, strict=True):
            bad = scene.publish(publisher, step, **options)
            scene.until_refused(bad)
            assert tap.loads(bad) == 1
            assert sync.serves()["version"] == str(good)
            good = scene.publish(publisher, step + 5)
            sync.until_serves(good)
    assert crowd.failed == []
    assert scene.check(crowd.answers)
    assert set(crowd.versions()) <= set(scene.published[0::2]), "a bad one has answered"
    scene.until_only(good)
