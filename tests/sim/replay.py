"""python -m tests.sim.replay SEED [--nodes N] [--faults N] [--trace]: play one seed again."""

from __future__ import annotations

import argparse
import time

from tests.sim.job import simulate
from tests.sim.scenario import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description="Play one seed again.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--nodes", type=int, default=Plan(seed=0).nodes)
    parser.add_argument("--faults", type=int, default=Plan(seed=0).faults)
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    options = parser.parse_args()
    began_s = time.process_time()
    result = simulate(Plan(seed=options.seed, nodes=options.nodes, faults=options.faults), trace=options.trace)
    for line in result.lines:
        print(line)
    took_s = time.process_time() - began_s
    print(f"{result.outcome}; {result.rounds} rounds, {result.proposed} proposals, {result.takeovers} take-overs")
    print(f"{result.events} events in {took_s:.2f} s of CPU, digest {result.digest}")


if __name__ == "__main__":
    main()
