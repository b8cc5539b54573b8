"""Colours that lie beside each other in the report can be told apart by everybody, in both themes.

Source: Machado, Oliveira, Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency"
(matrices at severity 1, on linear RGB); distances are CIE76 in CIELAB, where about 2.3 is just noticeable.
"""

from __future__ import annotations

import itertools
import pathlib
import re

import pytest

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "src" / "holdfast" / "story" / "assets"
Matrix = tuple[tuple[float, float, float], ...]
VISIONS: dict[str, Matrix] = {
    "everybody": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
TOGETHER = {
    "a node's states": ("parked", "ready", "running", "stopping", "silent"),
    "a server's states": ("serving", "updating", "lagging", "gone", "load"),
    "phases of a failover": ("noticed", "stopped", "committed", "started", "trains"),
}
LEAST = 11.0


def colours(*, dark: bool) -> dict[str, str]:
    """The page's variables in one theme."""
    parts = re.findall(r":root \{(.*?)\}", (ASSETS / "page.css").read_text(encoding="utf-8"), re.DOTALL)
    found: dict[str, str] = {}
    for part in parts[: 2 if dark else 1]:
        found |= dict(re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", part))
    return found


def lab(colour: str, vision: Matrix) -> tuple[float, ...]:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    seen = [min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in vision]
    to_xyz: Matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(m * c for m, c in zip(row, seen, strict=True)) for row in to_xyz]
    x, y, z = (
        v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116
        for v in (c / white for c, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("group", TOGETHER)
def test_neighbours_can_be_told_apart(group: str, vision: str, dark: bool) -> None:
    named = dict(re.findall(r"(\w+): \[\"(--[a-z]+)\"", (ASSETS / "base.js").read_text(encoding="utf-8")))
    palette = colours(dark=dark)
    seen = {name: lab(palette[named[name]], VISIONS[vision]) for name in (*TOGETHER[group],)}
    seen["the card"] = lab(palette["--card"], VISIONS[vision])
    for one, other in itertools.combinations(seen, 2):
        distance = sum((a - b) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5
        assert distance >= LEAST, f"{one} and {other} look alike: {distance:.1f}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ("--ink", "--card"),
        ("--soft", "--card"),
        ("--soft", "--wash"),
        ("--bad", "--card"),
        ("--good", "--paper"),
        ("--faint", "--paper"),
        ("--faint", "--wash"),
    ],
)
def test_text_stands_out(ink: str, paper: str, dark: bool) -> None:
    """At least 4.5 : 1, as WCAG 2.2 asks for."""

    def light(colour: str) -> float:
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    palette = colours(dark=dark)
    low, high = sorted((light(palette[ink]), light(palette[paper])))
    assert (high + 0.05) / (low + 0.05) >= 4.5
