"""`/metrics`, with vLLM's own names where they say the same thing.

`vllm:lora_requests_info` has the adapters in its labels, and its value is the time at which that was so: here always
now, since the figures are taken when they are asked for, where vLLM keeps a series for every combination that there
ever was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import PROCESS_COLLECTOR, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.serve.engine import Engine

LABELS = ("engine", "model_name")
FINISH_REASONS = ("stop", "length", "abort", "error")


class EngineCollector(Collector):
    def __init__(self, engine: Engine, model: str, max_loras: int) -> None:
        self._engine = engine
        self._values = ("0", model)
        self._max_loras = str(max_loras)

    def collect(self) -> Iterator[Metric]:
        load, totals = self._engine.load, self._engine.totals
        for name, documentation, value in (
            ("vllm:num_requests_running", "Number of sequences that are being made.", load.num_running),
            ("vllm:num_requests_waiting", "Number of sequences that wait for their turn.", load.num_waiting),
            ("holdfast:paused", "1 while generation is paused.", int(self._engine.is_paused)),
        ):
            gauge = GaugeMetricFamily(name, documentation, labels=LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, documentation, value in (
            ("vllm:prompt_tokens", "Number of prompt tokens read.", totals.prompt_tokens),
            ("vllm:generation_tokens", "Number of tokens made.", totals.generation_tokens),
        ):
            counter = CounterMetricFamily(name, documentation, labels=LABELS)
            counter.add_metric(self._values, value)
            yield counter
        finished = CounterMetricFamily(
            "vllm:request_success", "Number of finished sequences.", labels=(*LABELS, "finished_reason")
        )
        for reason in FINISH_REASONS:
            finished.add_metric((*self._values, reason), totals.finished[reason])
        yield finished
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that requests run with or wait for; the value is the time of that.",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )
        adapters = (",".join(load.waiting_adapters), ",".join(load.running_adapters))
        info.add_metric((self._max_loras, *adapters), time.time())
        yield info


def registry(engine: Engine, model: str, max_loras: int) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(EngineCollector(engine, model, max_loras))
    made.register(PROCESS_COLLECTOR)
    return made
