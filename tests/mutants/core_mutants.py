"""The rules of the core, removed one at a time."""

from __future__ import annotations

from tests.mutants.drive import Mutant

_CLAIMS = ("tests/spec/test_core_claims.py",)
_SWEEP = ("tests/spec/test_core_sweep.py",)
_CONSUME = ("tests/spec/test_core_consume.py",)
_PUBLISH = ("tests/spec/test_core_publish.py",)


def _in(file: str, tests: tuple[str, ...], *rows: tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(name=name, rule=rule, file=file, old=old, new=new, tests=tests) for name, rule, old, new in rows]


MUTANTS = [
    *_in(
        "core/claims.py",
        _CLAIMS,
        (
            "claim-skips",
            "a claim is the highest + 1",
            'Admit(cycle + 1, f"round {term.round}',
            'Admit(cycle + 2, f"round {term.round}',
        ),
        (
            "claim-round",
            "a lower round never follows a higher one",
            "    if theirs.round > term.round:\n        raise _superseded(term, Claim(cycle, theirs, None))\n",
            "",
        ),
        (
            "claim-same-round",
            "one round has one publisher until it has closed",
            '    if standing.closed:\n        return Admit(cycle + 1, f"the publisher',
            '    if True:\n        return Admit(cycle + 1, f"the publisher',
        ),
        (
            "claim-superseded-job",
            "a superseded job never claims again",
            "    if any(claim.term is not None and claim.term.job == term.job for claim in claims):\n        raise _superseded(term, highest)\n",
            "",
        ),
        (
            "claim-silence",
            "another job must be silent for a whole lease",
            "if standing.silent_s >= lease_s:",
            "if standing.silent_s >= 0:",
        ),
        (
            "claim-alive",
            "a living publisher of another job is not replaced unless told",
            "    if standing.beaten:\n",
            "    if not standing.beaten:\n",
        ),
        ("fence", "a higher claim fences", "    if highest <= cycle:\n", "    if highest <= cycle + 1:\n"),
    ),
    *_in(
        "core/lineage.py",
        _CLAIMS,
        (
            "lineage-bound",
            "what a zombie writes later is no ancestor",
            "return last is None or version.order < last.order or version == last",
            "return True",
        ),
        (
            "lineage-start",
            "the start is one version, not one step",
            "version.order < last.order or version == last",
            "version.order <= last.order",
        ),
        (
            "lineage-highest",
            "the highest claim is followed",
            "claim = by_cycle.get(max(by_cycle, default=0))",
            "claim = by_cycle.get(min(by_cycle, default=0))",
        ),
        (
            "lineage-unreadable",
            "a claim that cannot be read has nothing to give",
            "if not lineage.spans or (not lineage.readable and len(lineage.spans) == 1):",
            "if not lineage.spans:",
        ),
    ),
    *_in(
        "core/sweep.py",
        _SWEEP,
        (
            "sweep-enter",
            "a sweeper says that it is here before it looks",
            "            if not state.entered:\n",
            "            if False:\n",
        ),
        (
            "sweep-settle",
            "two bounds pass between tombstone and second look",
            "return msgspec.structs.replace(state, phase=Phase.SETTLING), (Settle(state.bound_s),)",
            "return msgspec.structs.replace(state, phase=Phase.RELOOKING), (Look(),)",
        ),
        (
            "sweep-second-look",
            "claims and consumers are read afresh before anything is removed",
            "doomed = frozenset(v for v in state.tombstones if v in verdicts and not verdicts[v].stays)",
            "doomed = state.tombstones",
        ),
        (
            "sweep-tombstone",
            "nothing is removed that was not announced",
            "doomed = frozenset(v for v in state.tombstones if v in verdicts and not verdicts[v].stays)",
            "doomed = frozenset(v for v in verdicts if not verdicts[v].stays)",
        ),
        (
            "sweep-expired-late",
            "who is only now silent still counts at the second look",
            "    verdicts = judge(view, policy, state.expired)\n    doomed",
            "    verdicts = judge(view, policy, state.expired | view.silent)\n    doomed",
        ),
        (
            "sweep-expired-record",
            "the expired stand in the record of the tombstones",
            "seen=present, expired=expired, bound_s",
            "seen=present, bound_s",
        ),
        (
            "sweep-seen",
            "the record lists who was seen",
            "known = msgspec.structs.replace(state, seen=present,",
            "known = msgspec.structs.replace(state,",
        ),
        (
            "sweep-later",
            "somebody new who sees later is waited for",
            "    if view.bound_s > state.bound_s:\n",
            "    if False:\n",
        ),
        (
            "sweep-fenced-first",
            "a fenced sweeper stops at its first look",
            "def _first_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n    if view.highest > state.cycle:\n        return _fenced(state, view)\n",
            "def _first_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n",
        ),
        (
            "sweep-fenced-second",
            "a fenced sweeper stops at its second look",
            "def _second_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n    if view.highest > state.cycle:\n        return _fenced(state, view)\n",
            "def _second_look(state: Sweep, view: View, policy: Retention) -> tuple[Sweep, tuple[Effect, ...]]:\n",
        ),
        (
            "sweep-withdraw",
            "what is not removed and not failed is withdrawn",
            "return _record(state, Phase.CLEARING, tombstones=failed)",
            "return _record(state, Phase.CLEARING, tombstones=state.tombstones)",
        ),
        (
            "sweep-failed",
            "what could not be removed stays announced",
            "return _record(state, Phase.CLEARING, tombstones=failed)",
            "return _record(state, Phase.CLEARING, tombstones=frozenset())",
        ),
        ("sweep-held", "what is held stays", "        if version in holders:\n", "        if False:\n"),
        (
            "sweep-unreadable",
            "an unreadable file holds everything",
            "        elif unreadable:\n",
            "        elif False:\n",
        ),
        (
            "sweep-late-claim",
            "versions of a claim that is not visible here are not judged",
            "        elif version.cycle > view.highest:",
            "        elif False:",
        ),
        (
            "sweep-every",
            "consumers of every version are waited for",
            "        if consumer.every:\n",
            "        if False:\n",
        ),
    ),
    *_in(
        "core/retention.py",
        _SWEEP,
        (
            "keep-fresh",
            "what a fresh consumer would be given stays",
            "    for version in line[:1] + tuple(version for version in line if version not in known.blocked)[:1]:\n",
            "    for version in ():\n",
        ),
        (
            "keep-unblocked",
            "not only what another sweeper may remove stays",
            " + tuple(version for version in line if version not in known.blocked)[:1]",
            "",
        ),
        (
            "keep-recent",
            "the newest ones stay",
            "    for version in line[: policy.keep_recent]:\n",
            "    for version in ():\n",
        ),
        (
            "keep-every",
            "every nth stays",
            "            if version.step % policy.keep_every == 0:\n",
            "            if False:\n",
        ),
        (
            "keep-acknowledged",
            "the newest acknowledged version stays",
            "    if acknowledged is not None and acknowledged in known.versions:\n",
            "    if False:\n",
        ),
        (
            "keep-young",
            "what is young stays",
            "            if known.ages_s.get(version, 0.0) < policy.min_age_s:\n",
            "            if False:\n",
        ),
        (
            "keep-pinned",
            "what is pinned stays",
            "    for version in known.pinned & known.versions:\n",
            "    for version in ():\n",
        ),
        (
            "keep-unreadable",
            "nothing goes while the highest claim cannot be read",
            "    if not known.lineage.readable:\n",
            "    if False:\n",
        ),
    ),
    *_in(
        "core/liveness.py",
        _SWEEP,
        (
            "silence-gap",
            "time in which the observer was away does not count",
            "counted = passed if 0.0 <= passed <= gap_s else 0.0",
            "counted = passed",
        ),
        (
            "silence-new",
            "a new observer watches a full lease",
            "            after[name] = Watched(token)\n",
            "            after[name] = Watched(token, 1e9)\n",
        ),
        (
            "silence-reset",
            "a beat ends the silence",
            "after[name] = Watched(token, 0.0, beaten=True)",
            "after[name] = Watched(token, before.silent_s + counted, beaten=True)",
        ),
    ),
    *_in(
        "core/bounds.py",
        _SWEEP,
        (
            "bound-zero",
            "the bound is zero on one machine and device only",
            "len({(party.host, party.device) for party in parties}) <= 1",
            "len({party.host for party in parties}) <= 1",
        ),
        (
            "bound-largest",
            "the largest bound counts",
            "return max(min(max(0.0, party.bound_s), BOUND_S_MAX) for party in parties)",
            "return min(max(0.0, party.bound_s) for party in parties)",
        ),
        ("bound-twice", "a tombstone stands for two bounds", "return 2.0 * bound\n", "return bound\n"),
        (
            "lease-length",
            "a lease is two bounds and three beats",
            "shortest = 2.0 * bound + 3.0 * beat_s(lease_s)",
            "shortest = bound + 3.0 * beat_s(lease_s)",
        ),
    ),
    *_in(
        "core/consume.py",
        _CONSUME,
        (
            "hold-first",
            "the hold is written before the sweepers are read",
            "        return taking, (WriteRecord(),)\n    return _to(taking, Phase.CHECKING), (Check(wanted[0]),)",
            "        return _to(taking, Phase.CHECKING), (Check(wanted[0]),)\n    return _to(taking, Phase.CHECKING), (Check(wanted[0]),)",
        ),
        (
            "look-after-hold",
            "the sweepers are read after the hold",
            "return _to(state, Phase.LOOKING), (ReadSweepers(),)\n        case Phase.LOOKING, SweepersRead(expired=True)",
            "return _to(state, Phase.CHECKING), (Check(state.taking),)  # type: ignore\n        case Phase.LOOKING, SweepersRead(expired=True)",
        ),
        (
            "look-tombstone",
            "what is tombstoned at the second look is given up",
            "    if state.taking in read.tombstoned:\n",
            "    if False:\n",
        ),
        (
            "look-expired",
            "who is expired at the second look drops everything",
            "        case Phase.LOOKING, SweepersRead(expired=True):\n            return _drop(state, mode)\n",
            "",
        ),
        (
            "look-unseen",
            "nothing is loaded in place before it is listed",
            "    if read.unseen_by and not mode.staged:\n",
            "    if False:\n",
        ),
        (
            "unseen-seen",
            "a sweeper elsewhere must have listed a consumer",
            "if not (record.closed or name in silent or key in record.seen or beside or waits):",
            "if not (record.closed or name in silent or beside or waits or True):",
        ),
        (
            "unseen-bound",
            "who holds without loading wants a sufficient bound",
            "record.bound_s >= max(party.bound_s, record.party.bound_s)",
            "True",
        ),
        (
            "check-first",
            "nothing is given that was not checked",
            "    return _to(state, Phase.CHECKING), (Check(state.taking),)\n\n\ndef _give_up",
            "    return _give(state, mode)\n\n\ndef _give_up",
        ),
        (
            "patience",
            "what is not visible is looked for again",
            "    if waited_s >= mode.patience_s:\n",
            "    if True:\n",
        ),
        (
            "patience-end",
            "what never becomes visible is refused",
            "    if waited_s >= mode.patience_s:\n",
            "    if False:\n",
        ),
        (
            "patience-progress",
            "progress counts",
            "    if state.progress_s < 0 or event.progress > state.progress:\n",
            "    if state.progress_s < 0:\n",
        ),
        (
            "refused",
            "what was refused is not tried again",
            "if version not in refused and version not in looked.tombstoned)",
            "if version not in looked.tombstoned)",
        ),
        (
            "position",
            "under one claim only later versions are given",
            "if version > last or version == state.again)",
            "if version != last or version == state.again)",
        ),
        ("position-claim", "a lower claim is not followed", "    if lineage.cycle < state.claim:\n", "    if False:\n"),
        (
            "rewind-told",
            "a rewind is told",
            "give = Give(version, state.last if state.rewound else None)",
            "give = Give(version, None)",
        ),
        (
            "rewind-ancestor",
            "every version goes on from the common ancestor",
            "line = tuple(version for version in line if fork is None or version >= fork)",
            "line = tuple(version for version in line if fork is None or version > fork)",
        ),
        (
            "rewind-unwanted",
            "what a rewind dropped is not waited for",
            "    if rewound or swept:\n",
            "    if swept:\n",
        ),
        (
            "swept-unwanted",
            "what was swept before the hold stood is not waited for",
            "    if rewound or swept:\n",
            "    if rewound:\n",
        ),
        (
            "late-wanted",
            "what is not visible yet is waited for while nothing newer is there",
            "swept = taking not in looked.versions and any(",
            "swept = taking not in looked.versions or any(",
        ),
        (
            "acknowledge-lease",
            "the lease is looked at before an acknowledgement",
            "return (state, (CheckLease(version),)) if mode.writes else _acknowledged(state, version, mode)",
            "return _acknowledged(state, version, mode)",
        ),
        (
            "acknowledge-expired",
            "the expired acknowledge nothing",
            "return _drop(state, mode) if expired else _acknowledged(state, version, mode)",
            "return _acknowledged(state, version, mode)",
        ),
        (
            "acknowledge-released",
            "what was released is not acknowledged",
            "    if version not in state.given:  # released",
            "    if False:  # released",
        ),
        (
            "acknowledge-is-no-release",
            "an acknowledged version stays held",
            "acknowledged_cycle=state.claim, serving=state.serving | {version}",
            "acknowledged_cycle=state.claim, serving=state.serving | {version}, holds=state.holds - {version}",
        ),
        (
            "staged-hold",
            "a staged copy ends the hold",
            "holds=state.holds - {version} if mode.staged else state.holds",
            "holds=state.holds",
        ),
        (
            "hold-others",
            "a taking keeps the other holds",
            "holds=(state.holds & state.given) | frozenset(ahead) if",
            "holds=frozenset(ahead) if",
        ),
        (
            "failed-again",
            "what failed is given again",
            "after = msgspec.structs.replace(after, again=version, holds=kept)",
            "pass",
        ),
        (
            "lost-given",
            "whoever lost its holds has lost what it was given in place",
            "kept = state.given if mode.staged else frozenset()",
            "kept = state.given",
        ),
    ),
    *_in(
        "core/publish.py",
        _PUBLISH,
        (
            "publish-claim",
            "nothing is published before the claim stands",
            "        case Phase.OPEN, Publish(number, nonce):",
            "        case Phase.OPEN | Phase.CLAIMING, Publish(number, nonce):",
        ),
        (
            "publish-guard",
            "the claims are read before the commit",
            "return replace(state, phase=Phase.GUARDING), (ReadClaims(),)",
            "return replace(state, phase=Phase.COMMITTING), (Commit(state.making),)  # type: ignore",
        ),
        (
            "publish-fenced",
            "a fenced publisher commits nothing",
            "    if error is not None:\n        return msgspec",
            "    if False:\n        return msgspec",
        ),
        (
            "publish-lost",
            "who lost the race asks again",
            "return replace(state, phase=Phase.NEW, cycle=0), (ReadClaims(),)",
            "return replace(state, phase=Phase.OPEN), ()",
        ),
        (
            "publish-down",
            "steps never go down",
            "    if parent is not None and number < parent.step:\n",
            "    if False:\n",
        ),
        (
            "publish-attempt",
            "other bytes of a step get a name of their own",
            "        attempt = state.last.attempt + 1\n",
            "        attempt = state.last.attempt\n",
        ),
        (
            "publish-unsure",
            "a commit that cannot be told spends its name",
            "return replace(state, phase=Phase.OPEN, last=state.making, making=None), ()",
            "return replace(state, phase=Phase.OPEN, making=None), ()",
        ),
        (
            "publish-parent",
            "a version descends from the one before",
            "return self.last or self.starts_from",
            "return self.starts_from or self.last",
        ),
    ),
]
