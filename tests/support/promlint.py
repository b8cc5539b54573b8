"""A page of metrics, read as Prometheus reads it, and checked by the rules that its own linter has."""

from __future__ import annotations

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

TYPES = {"counter", "gauge", "histogram", "info", "unknown"}
UNITS = {"ms": "seconds", "milliseconds": "seconds", "kb": "bytes", "mb": "bytes", "percent": "ratio"}


def fetch(url: str) -> str:
    """The page at `url`, by plain HTTP."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        text: str = answer.read().decode()
        return text


def lint(page: str) -> dict[str, float]:
    """The page's series, `name{label="value",…}` -> value, if nothing is wrong with it."""
    series: dict[str, float] = {}
    families = list(text_string_to_metric_families(page))
    names = [family.name for family in families]
    assert sorted(set(names)) == sorted(names), "a family is there twice"
    for family in families:
        assert re.fullmatch(r"holdfast_[a-z0-9]+(_[a-z0-9]+)*", family.name), family.name
        assert family.documentation.strip(), f"{family.name} has no HELP"
        assert family.type in TYPES, f"{family.name} has no type"
        assert not set(family.name.split("_")) & set(UNITS), f"{family.name}: not a base unit"
        words = family.name.removesuffix("_created").split("_")
        assert not {"seconds", "bytes"} & set(words[:-1]), f"{family.name}: its unit is not last"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith("_total"), sample.name
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in series, f"{key} is there twice"
            series[key] = sample.value
    assert series
    return series
