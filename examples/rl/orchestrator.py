"""The orchestrator: keeps the trainer supplied with rollouts, through the servers' HTTP API alone.

python -m examples.rl.orchestrator RUN --sync http://server-a:8600 --sync http://server-b:8600 [--channel PATH]

It follows the channel to know where the trainer is, asks the `sync` beside each server which version is served and
under which name, and labels each answer with the version that made it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx

import holdfast
from examples.rl import task
from examples.rl.config import ADAPTER, Config, Run
from examples.rl.rollouts import Answer, Batch, Batches, Group

AGAIN_S = 0.1
ANSWER_S = 30.0  # for one answer of one server
KEEP_BATCHES = 64


@dataclasses.dataclass
class Counts:
    """Requests so far: answered, asked again (the server had died, or the name was gone), given up."""

    requests_answered: int = 0
    requests_retried: int = 0
    requests_failed: int = 0


class Clients:
    """Asks whichever server serves a version that is fresh enough, and another one when that fails."""

    def __init__(self, served: holdfast.Served, config: Config) -> None:
        self.counts = Counts()
        self._served = served
        self._config = config
        self._http = httpx.Client(timeout=ANSWER_S)
        self._turn = itertools.count()
        self._lock = threading.Lock()

    def ask(self, prompt: list[int], step: int, *, frozen: bool = False) -> Group:
        """A group of answers by one version; with `frozen`, by the base model, which stays as it was.

        Raises:
            TimeoutError: no server answered within `ask_timeout_s`.
        """
        began_s = time.monotonic()
        while time.monotonic() - began_s < self._config.ask_timeout_s:
            fresh = [one for one in self._served.ready() if abs(step - one.version.step) <= self._config.staleness_max]
            if fresh:
                one = fresh[next(self._turn) % len(fresh)]
                answers = self._try(one.url, "base" if frozen else one.model, prompt)
                if answers:
                    self._count("requests_answered")
                    return Group(prompt, str(one.version), one.version.step, answers)
                self._count("requests_retried")
            time.sleep(AGAIN_S)
        self._count("requests_failed")
        raise TimeoutError(f"no answer within {self._config.ask_timeout_s:g} s")

    def _try(self, url: str, model: str, prompt: list[int]) -> list[Answer]:
        """The answers; none if this server has just died, or has this version no more."""
        wish = {
            "model": model,
            "prompt": prompt,
            "n": self._config.samples,
            "max_tokens": task.ANSWER_TOKENS,
            "temperature": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
        }
        try:
            answered = self._http.post(f"{url}/v1/completions", json=wish)
        except httpx.HTTPError:
            return []
        if answered.status_code != httpx.codes.OK:
            return []
        choices = answered.json()["choices"]
        if any(choice["finish_reason"] not in ("stop", "length") for choice in choices):
            return []  # it was told to end
        made = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
        return [Answer(tokens, logprobs, task.reward(prompt, tokens)) for tokens, logprobs in made]

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self.counts, name, getattr(self.counts, name) + 1)


def mean_reward(groups: list[Group]) -> float:
    return statistics.fmean(answer.reward for group in groups for answer in group.answers)


def orchestrate(run: Run, channel: holdfast.Channel, served: holdfast.Served) -> None:
    """Make batches until the trainer has published its last version."""
    config, batches, events = run.config, Batches(run.batches), channel.event_log("orchestrator")
    clients = Clients(served, config)
    # It holds what it works with, but never opens the files: so it need not wait until sweepers elsewhere know of it.
    following = channel.consumer("orchestrator", in_place=False)
    with following as consumer, ThreadPoolExecutor(config.prompts) as pool:
        newest = consumer.wait_for(0)
        for number in itertools.count(batches.last() + 1):
            while not newest.metadata.get("final"):
                newer = consumer.take(0.0 if number < newest.metadata["batch"] + config.ahead else 1.0)
                if newer is not None:
                    newest.release()
                    newest = newer
                elif number < newest.metadata["batch"] + config.ahead:
                    break
            if newest.metadata.get("final"):
                break
            prompts = [task.prompt(random.Random(f"{number}/{one}")) for one in range(config.prompts)]
            asked = [pool.submit(clients.ask, prompt, newest.step) for prompt in prompts]
            groups = [one.result() for one in asked]
            measured = {"reward": mean_reward(groups)}
            if number % config.control_every == 0:
                control = [pool.submit(clients.ask, prompt, newest.step, frozen=True) for prompt in prompts]
                measured["control_reward"] = mean_reward([one.result() for one in control])
            batches.put(Batch(number, groups))
            batches.forget(number - KEEP_BATCHES)
            events.emit("measured", step=newest.step, batch=number, **measured, **dataclasses.asdict(clients.counts))
        newest.release()
    events.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="orchestrator", description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--sync", action="append", required=True, metavar="URL", help="of each server's sync")
    parser.add_argument(
        "--channel", type=pathlib.Path, help="where this machine sees the channel; default: RUN/channel"
    )
    arguments = parser.parse_args()
    run = Run(arguments.run)
    with holdfast.Served(arguments.sync, adapter=ADAPTER) as served:
        orchestrate(run, holdfast.Channel(arguments.channel or run.channel), served)


if __name__ == "__main__":
    main()
