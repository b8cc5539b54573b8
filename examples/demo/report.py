"""What the demo shows at the end: every version with its losses and its fate, and the claims with their evidence."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

from examples.demo.plan import FENCED, SERVERS, TRAINERS, Places, Plan
from examples.demo.process import Report, Said
from holdfast.events import Event, read_events

SAME_LOSS = 1e-3
REWOUND = "rewound from "


@dataclasses.dataclass
class Witnessed:
    """What main saw from outside, beside what the processes say of themselves."""

    torn: str = ""
    frozen_s: float = 0.0
    frozen_holds: dict[str, bool] = dataclasses.field(default_factory=dict)  # version -> still there at the end
    frozen_published: int = 0
    frozen_swept: int = 0
    late_refused: dict[str, str] = dataclasses.field(default_factory=dict)
    late_given: str = ""
    served_alone: dict[str, str] = dataclasses.field(default_factory=dict)  # client -> version, after sync has ended
    left: dict[str, str] = dataclasses.field(default_factory=dict)  # version -> why it stays
    garbage: str = ""
    codes: dict[str, int | None] = dataclasses.field(default_factory=dict)


def names(versions: Iterable[object]) -> str:
    """Versions by cycle and step: `c2 s100`."""
    return ", ".join(_short(str(version)) for version in sorted(map(str, versions))) or "nothing"


def spoken(said: Said) -> str:
    """One line of a report as main tells it while it happens; "" for what is not told."""
    match said.event:
        case "opened":
            begins = f"starts from {names([said.version])}" if said.version else "starts from nothing"
            return f"publishes as cycle {said.cycle} and {begins}"
        case "used":
            return f"is served {names([said.version])}: held-out loss {said.loss:.3f}"
        case "woke":
            return f"has its server read what it held when frozen again: {names([said.version])}, loss {said.loss:.3f}"
        case "fenced":
            return f"is refused: {said.reason}"
        case "refused":
            return f"asked for {names([said.version])} and was refused: {said.reason}"
        case "ended":
            return f"has measured the last version, and ends after {said.answers} answers"
    return ""


class Story:
    """The reports of all processes and the event files of the channel, side by side."""

    def __init__(self, places: Places) -> None:
        self.said = {name: Report(places.report(name)).said() for name in (*TRAINERS, *SERVERS)}
        self.events: dict[str, list[Event]] = defaultdict(list)
        files = places.events.glob("*.jsonl")
        for event in sorted((event for path in files for event in read_events(path)), key=lambda event: event.time):
            self.events[event.event].append(event)

    def of(self, process: str, event: str) -> list[Said]:
        return [said for said in self.said[process] if said.event == event]

    def published(self) -> list[Said]:
        every = (said for name in TRAINERS for said in self.of(name, "published"))
        return sorted(every, key=lambda said: said.version)

    def losses(self, process: str) -> dict[str, float]:
        return {said.version: said.loss for said in self.of(process, "used")}

    def rewinds(self, process: str) -> list[Event]:
        """What the sync process of this client's host was told of rewinds."""
        given = self.events["given"]
        return [e for e in given if e.process == f"consumer-{process}" and e.reason.startswith(REWOUND)]


def conclude(places: Places, plan: Plan, witnessed: Witnessed, took_s: float) -> int:
    """Print it all; the demo's exit code."""
    story = Story(places)
    _print_versions(story, witnessed)
    _print_incidents(story, witnessed, plan)
    _print_completions(story)
    print("\nclaims")
    claims = list(_claims(story, witnessed, plan))
    for claim, evidence in claims:
        print(f"  {'yes' if evidence else 'NO ':3}  {claim}{f': {evidence}' if evidence else ''}")
    held = all(evidence for _, evidence in claims)
    print(f"\n{'every claim holds' if held else 'NOT every claim holds'}, in {took_s:.0f} s")
    return 0 if held else 1


def _print_versions(story: Story, witnessed: Witnessed) -> None:
    fates = {event.version: f"swept: {event.reason.removeprefix('goes: ')}" for event in story.events["swept"]}
    losses = [story.losses(name) for name in SERVERS]
    print("\n cycle   step   inference-a   inference-b   in the end   (held-out loss, nats per token)")
    for said in story.published():
        fate = fates.get(said.version, witnessed.left.get(said.version, ""))
        cells = "".join(f"{each[said.version]:14.3f}" if said.version in each else f"{'–':>14}" for each in losses)
        print(f"{said.cycle:6}{said.step:7}{cells}   {fate}")
    print("–: not measured, since a newer one was served already when the client looked")


def _print_incidents(story: Story, witnessed: Witnessed, plan: Plan) -> None:
    published = story.published()
    swept = {event.version for event in story.events["swept"]}
    used = {said.version for name in SERVERS for said in story.of(name, "used")}
    print(f"\n{len(published)} published, {len(used)} measured, {len(swept)} swept, {len(witnessed.left)} left\n")
    for event in story.events["claimed"]:
        print(f"claimed     cycle {event.fields.get('cycle')}: {event.reason}")
    for name in SERVERS:
        for event in story.rewinds(name):
            before = event.reason.removeprefix(REWOUND)
            print(f"rewound     {name} from {names([before])} to {names([event.version])}")
    for event in story.events["garbage"]:
        print(f"swept       unfinished publishes: {', '.join(event.fields.get('names', ()))}")
    for name in TRAINERS:
        for said in story.of(name, "fenced"):
            print(f"refused     step {plan.zombie_at} of {name}: {said.reason}")
    for version, reason in witnessed.late_refused.items():
        print(f"refused     {names([version])} by the host that came late: {reason}")


def _print_completions(story: Story) -> None:
    used = story.of(SERVERS[0], "used")
    print("\ncompletions, by the first version and by the last")
    for first, last in zip(used[0].completions, used[-1].completions, strict=True):
        print(f"  {first}\n  {last}\n")


def _claims(story: Story, witnessed: Witnessed, plan: Plan) -> Iterator[tuple[str, str]]:
    """Each claim with its evidence; no evidence, no claim."""
    for name in SERVERS:
        yield f"the loss that {name} measured fell", _fell(story.of(name, "used"), plan)
    yield "both measured the same loss for the same version", _same_losses(story)
    yield "that is the loss that the trainer measured before it published the version", _as_trained(story)
    yield "all answers under one version's name were made by the same weights, on both servers", _same_weights(story)
    yield "no request was answered by anything but 200", _all_answered(story)
    yield "both servers followed both rewinds, and never served again what was taken back", _both_rewound(story)
    yield "a resumed trainer repeats what was lost: same step, same loss", _repeats(story)
    killed = witnessed.torn if _nobody_saw(story, 1, plan.kill_at) else ""
    yield "trainer 1 was killed in the middle of a publish, and nobody ever saw that version", killed
    yield "the host of inference-a still found what it held when it was frozen", _found_after_freeze(story, witnessed)
    yield "the zombie was told that it is replaced, and nobody saw what it wrote", _zombie(story, witnessed, plan)
    yield "a damaged version was refused, and the one before it given", _late(witnessed)
    yield "both servers serve on when sync has ended", _served_alone(story, witnessed)
    yield "nothing is left unfinished in the channel", "" if witnessed.garbage else "staging/ is empty"
    yield "everybody else has ended as it should", _ended(witnessed)


def _fell(used: list[Said], plan: Plan) -> str:
    if not used or used[-1].step != plan.steps or used[-1].loss > used[0].loss - plan.fall:
        return ""
    return f"{used[0].loss:.3f} to {used[-1].loss:.3f}"


def _same_losses(story: Story) -> str:
    a, b = (story.losses(name) for name in SERVERS)
    both = a.keys() & b.keys()
    same = all(abs(a[version] - b[version]) < SAME_LOSS for version in both)
    return f"{len(both)} versions" if both and same else ""


def _as_trained(story: Story) -> str:
    trained = {said.version: said.loss for said in story.published()}
    measured = [(version, loss) for name in SERVERS for version, loss in story.losses(name).items()]
    same = all(abs(loss - trained.get(version, math.inf)) < SAME_LOSS for version, loss in measured)
    return f"{len(measured)} measurements over HTTP" if measured and same else ""


def _same_weights(story: Story) -> str:
    """One fingerprint per version, and none of two steps; a step that was repeated may have the very same bytes."""
    made_by: dict[str, set[str]] = defaultdict(set)
    steps: dict[str, set[int]] = defaultdict(set)
    for name in SERVERS:
        for said in story.of(name, "used"):
            made_by[said.version] |= set(said.made_by)
            for fingerprint in said.made_by:
                steps[fingerprint].add(said.step)
    same = all(len(of) == 1 for of in made_by.values()) and all(len(of) == 1 for of in steps.values())
    return f"{len(made_by)} versions, {len(steps)} fingerprints" if made_by and same else ""


def _all_answered(story: Story) -> str:
    ended = [said for name in SERVERS for said in story.of(name, "ended")]
    refused = [said for name in SERVERS for said in story.of(name, "refused")]
    return f"{sum(said.answers for said in ended)} answers" if len(ended) == len(SERVERS) and not refused else ""


def _both_rewound(story: Story) -> str:
    """The cycles that each was taken back from; no answer came from a version that had been taken back by then."""
    for name in SERVERS:
        cycles = [event.reason.removeprefix(REWOUND)[1:7] for event in story.rewinds(name)]
        used = [said.version for said in story.of(name, "used")]
        if cycles != ["000001", "000002"] or any(_taken_back(story, *pair) for pair in itertools.combinations(used, 2)):
            return ""
        if {version[1:7] for version in used} != {"000001", "000002", "000003"}:
            return ""
    return "from cycle 1, then from cycle 2"


def _taken_back(story: Story, earlier: str, later: str) -> bool:
    """Whether `later` lies outside the lineage of `earlier`, which was served before it."""
    starts = {said.cycle: said.version for name in TRAINERS for said in story.of(name, "opened") if said.version}
    return any(int(later[1:7]) < cycle <= int(earlier[1:7]) and later > start for cycle, start in starts.items())


def _repeats(story: Story) -> str:
    """Versions of one step in two cycles have one loss: the checkpoint brought everything back."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for said in story.published():
        by_step[said.step].append(said.loss)
    twice = {step: losses for step, losses in by_step.items() if len(losses) > 1}
    same = all(max(losses) - min(losses) < SAME_LOSS for losses in twice.values())
    return f"steps {', '.join(map(str, sorted(twice)))}" if twice and same else ""


def _nobody_saw(story: Story, cycle: int, step: int) -> bool:
    """Nothing that anybody did names a version of this cycle and step."""
    prefix = f"c{cycle:06d}-s{step:08d}-"
    events = (event.version or "" for events in story.events.values() for event in events)
    said = (said.version for each in story.said.values() for said in each)
    return not any(version.startswith(prefix) for version in (*events, *said))


def _found_after_freeze(story: Story, witnessed: Witnessed) -> str:
    losses, woke = story.losses("inference-a"), story.of("inference-a", "woke")
    same = bool(woke) and all(abs(losses.get(said.version, math.inf) - said.loss) < SAME_LOSS for said in woke)
    if not (same and witnessed.frozen_swept and witnessed.frozen_holds and all(witnessed.frozen_holds.values())):
        return ""
    return (
        f"{names(witnessed.frozen_holds)}, after {witnessed.frozen_s:.0f} s in which {witnessed.frozen_published} "
        f"versions were published and {witnessed.frozen_swept} of these swept"
    )


def _zombie(story: Story, witnessed: Witnessed, plan: Plan) -> str:
    said = story.of("trainer-2", "fenced")
    told = witnessed.codes.get("trainer-2") == FENCED and said
    return said[-1].reason if told and _nobody_saw(story, 2, plan.zombie_at) else ""


def _late(witnessed: Witnessed) -> str:
    given, refused = witnessed.late_given, witnessed.late_refused
    return f"{names([given])} for {names(refused)}" if refused and given and given not in refused else ""


def _served_alone(story: Story, witnessed: Witnessed) -> str:
    last = {name: story.of(name, "used")[-1].version for name in SERVERS}
    return f"{names(set(last.values()))}, with the same completions" if witnessed.served_alone == last else ""


def _ended(witnessed: Witnessed) -> str:
    others = {name: code for name, code in witnessed.codes.items() if name not in ("trainer-1", "trainer-2")}
    return ", ".join(others) if others and all(code == 0 for code in others.values()) else ""


def _short(version: str) -> str:
    return f"c{int(version[1:7])} s{int(version[9:17])}"
