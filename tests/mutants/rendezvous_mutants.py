"""The rules of membership's stores and shells, removed one at a time."""

from __future__ import annotations

from tests.mutants.drive import Mutant

_SUITE = "tests/conformance/test_stores.py::TestTcp::"
_TCP = "tests/conformance/test_stores_tcp.py::"
_CLERK = "tests/membership/test_clerk.py::"
_SCHEMAS = "tests/membership/test_schemas.py::"
_SIGNALS = "tests/membership/test_signals.py::"
_GUARDIAN = "tests/membership/test_guardian.py::"
_DESK = "tests/membership/test_desk.py::"


def _in(file: str, *rows: tuple[str, str, str, str, str]) -> list[Mutant]:
    return [
        Mutant(name=name, rule=rule, file=f"rendezvous/{file}", old=old, new=new, tests=(test,))
        for name, rule, old, new, test in rows
    ]


MUTANTS = [
    *_in(
        "tcp_store.py",
        (
            "tcp-revision",
            "who expects an older revision does not set the cell",
            "            if frame and _revision(frame) != expected:\n",
            "            if frame and False:\n",
            f"{_SUITE}test_a_cell_is_set_by_whoever_knows_what_stands_there",
        ),
        (
            "tcp-bell",
            "the bell rings after a change",
            '            self._call(lambda wire: wire.add(self._key("bell", cell)))\n',
            "            pass\n",
            f"{_SUITE}test_who_looks_sees_each_change",
        ),
        (
            "tcp-reread",
            "now and then the cell is read, whether the bell rang or not",
            " or time.monotonic() - known.at_s > REREAD_S:",
            ":",
            f"{_TCP}test_a_change_whose_writer_died_before_the_bell_is_seen",
        ),
        (
            "tcp-magic",
            "only the very same store is connected to again",
            "        if magic != self._magic:\n",
            "        if not magic:\n",
            f"{_TCP}test_another_store_in_its_place_is_not_the_store",
        ),
        (
            "tcp-forgotten",
            "a cell that has forgotten what was written is a store that was lost",
            "        if expected and not frame:\n",
            "        if False:\n",
            f"{_SUITE}test_a_cell_that_was_forgotten_is_a_store_that_was_lost",
        ),
        (
            "tcp-refused",
            "where nobody listens any more the store is lost",
            "            if error.refused:\n                self._gone",
            "            if False:\n                self._gone",
            f"{_TCP}test_a_store_whose_process_died_is_lost_for_good",
        ),
        (
            "tcp-patience",
            "a store that nobody can reach for long is lost",
            "            if time.monotonic() - self._answered_s > self._patience.lost_after_s:\n",
            "            if False:\n",
            f"{_TCP}test_who_is_out_of_reach_for_long_is_lost",
        ),
        (
            "tcp-index",
            "who knows the names of a collection looks whether there are more",
            "known is not None and self._call(lambda wire: wire.get(counter))[0] == known[0]",
            "known is not None and known[1]",
            f"{_SUITE}test_a_name_is_seen_by_all_once_it_was_put",
        ),
    ),
    *_in(
        "clerk.py",
        (
            "clerk-good-bye",
            "the good-bye is said before the thread ends",
            "            return self._left_s is not None and time.monotonic() - self._left_s >= LEAVE_S\n",
            "            return True\n",
            f"{_CLERK}test_a_good_bye_that_was_not_taken_is_said_again",
        ),
        (
            "clerk-give-up",
            "a good-bye that nobody takes is given up",
            "            return self._left_s is not None and time.monotonic() - self._left_s >= LEAVE_S\n",
            "            return False\n",
            f"{_CLERK}test_a_good_bye_that_nobody_takes_is_given_up",
        ),
        (
            "clerk-beat-again",
            "a beat that could not be put is put again",
            "        self._store.put_listed(self.keys.beats, self.node.member, encode(said))\n",
            "        self._dirty = False\n        self._store.put_listed(self.keys.beats, self.node.member, encode(said))\n",
            f"{_CLERK}test_a_good_bye_that_was_not_taken_is_said_again",
        ),
        (
            "clerk-desk",
            "workers are told that somebody is to be drained",
            "        self._local.tell(control)\n",
            "",
            f"{_CLERK}test_a_drain_is_told_to_the_workers_and_answered",
        ),
        (
            "clerk-away",
            "a store that does not answer now is not lost",
            '        if error.code == "store_lost":\n',
            "        if True:\n",
            f"{_CLERK}test_a_store_that_was_away_costs_nothing",
        ),
        (
            "clerk-lost",
            "a store that is lost ends the workers",
            "            self._words.put(self._lost)\n            self._rings = True\n",
            "            self._words.put(self._lost)\n",
            f"{_CLERK}test_a_store_that_is_lost_ends_everybody_with_1",
        ),
        (
            "clerk-garbage",
            "a coordinator's beat that is no record is no beat",
            "        beat = decode_all(there, Beat).get(control.coordinator)\n",
            "        beat = {name: decode(data, Beat, key=name) for name, data in there.items()}.get(control.coordinator)\n",
            f"{_SCHEMAS}test_a_coordinators_beat_that_is_garbage_is_no_beat",
        ),
    ),
    *_in(
        "coordinating.py",
        (
            "coordinating-prepare",
            "what a plan needs stands before control names it",
            "        for effect in effects:\n",
            "        for effect in reversed(effects):\n",
            f"{_CLERK}test_without_a_fault_there_is_one_round_and_all_leave_with_0",
        ),
        (
            "coordinating-unsure",
            "a write that was not confirmed is read back before anything else is decided",
            "        self._unsure = self._state.writing  #",
            "        self._unsure = False  #",
            f"{_CLERK}test_a_change_that_was_not_made_is_made_after_reading_back",
        ),
        (
            "coordinating-load",
            "a successor reads the roster",
            "plans=self._load(control)",
            "plans={}",
            f"{_CLERK}test_a_coordinator_that_is_lost_is_succeeded_by_one_other",
        ),
        (
            "coordinating-look",
            "the coordinator looks more often than a gap is long, however short the lease",
            "LOOK_S = 0.02 ",
            "LOOK_S = 0.25 ",
            f"{_CLERK}test_a_node_that_is_lost_is_replaced_in_its_place",
        ),
        (
            "coordinating-unknown",
            "a coordinator keeps what it does not know in control",
            "                value = encode_over(control, before.value, key=key)\n",
            "                value = encode(control)\n",
            f"{_SCHEMAS}test_what_a_newer_coordinator_wrote_into_control_is_kept",
        ),
    ),
    *_in(
        "founding.py",
        (
            "founding-take-over",
            "a coordinator is replaced on what was seen of it, by compare-and-set",
            "    return store.compare_and_set(keys.control, cell.revision, encode_over(mine",
            (
                "    cell = store.read(keys.control) or cell\n"
                "    return store.compare_and_set(keys.control, cell.revision, encode_over(mine"
            ),
            f"{_CLERK}test_of_two_who_stand_on_what_they_saw_one_wins",
        ),
        (
            "founding-unknown",
            "who takes over keeps what it does not know",
            "encode_over(mine, cell.value, key=keys.control)",
            "encode(mine)",
            f"{_SCHEMAS}test_what_a_newer_coordinator_wrote_into_control_is_kept",
        ),
        (
            "founding-supersede",
            "a new attempt ends the old ones",
            "            _supersede(store, name, keys.attempt)\n",
            "            pass\n",
            f"{_CLERK}test_a_new_attempt_ends_the_old_one",
        ),
        (
            "founding-newer",
            "a late attempt does not end a newer one",
            "        if name != keys.attempt and name not in newer:\n",
            "        if name != keys.attempt:\n",
            f"{_CLERK}test_a_late_attempt_ends_no_newer_one",
        ),
        (
            "founding-late",
            "a late attempt has ended before it begins",
            ") if newer else None\n    control",
            ") if False else None\n    control",
            f"{_CLERK}test_a_late_attempt_ends_no_newer_one",
        ),
        (
            "founding-listed",
            "an attempt is listed before it begins",
            "    store.put_listed(ATTEMPTS, keys.attempt, encode(mine))\n",
            "",
            f"{_CLERK}test_a_new_attempt_ends_the_old_one",
        ),
        (
            "founding-superseded-unknown",
            "who ends an attempt keeps what it does not know",
            "encode_over(ended, cell.value, key=keys.control)",
            "encode(ended)",
            f"{_SCHEMAS}test_ending_an_older_attempt_keeps_what_it_wrote",
        ),
    ),
    *_in(
        "hosting.py",
        (
            "hosting-linger",
            "the host stays until all others have left",
            "        return alone or now_s - self._ended_s >= LINGER_S\n",
            "        return True\n",
            f"{_CLERK}test_the_host_stays_until_all_others_have_left",
        ),
        (
            "hosting-goes-on",
            "a host that leaves keeps the store while the job goes on",
            "            return self._alone_s is not None and now_s - self._alone_s >= DESERTED_S\n",
            "            return True\n",
            f"{_CLERK}test_a_host_that_leaves_keeps_the_store_for_a_job_that_goes_on",
        ),
    ),
    *_in(
        "local.py",
        (
            "local-port",
            "each plan has a fresh port",
            "free_port(self._node.address, self._settings.port_range, avoid)",
            "next(iter(avoid), 0) or free_port(self._node.address, self._settings.port_range, avoid)",
            f"{_CLERK}test_workers_that_fail_cost_one_restart_and_a_fresh_port",
        ),
    ),
    *_in(
        "signals.py",
        (
            "signals-tell",
            "the store is told of a signal before torchrun's handler runs",
            '            return\n        self._agent.leave(f"told to by {signal.Signals(number).name}")\n        theirs',
            "            return\n        theirs",
            f"{_SIGNALS}test_the_store_is_told_before_torchruns_handler_runs",
        ),
        (
            "signals-host",
            "a host that keeps the store hears no SIGTERM",
            "            return\n        code",
            "            pass\n        code",
            f"{_SIGNALS}test_a_host_that_keeps_the_store_hears_no_sigterm",
        ),
        (
            "signals-spare",
            "a spare leaves with 0 on SIGTERM",
            "128 + number if self._agent.seated else 0",
            "128 + number",
            f"{_SIGNALS}test_parked_it_leaves_with_0_and_seated_with_the_signal",
        ),
    ),
    *_in(
        "guardian.py",
        (
            "guardian-ends",
            "the guardian ends what its agent leaves behind",
            "    ended = end_marked(marks(token), frozenset({agent}), grace_s=grace_s)\n",
            "    ended = 0\n",
            f"{_GUARDIAN}test_nothing_outlives_its_agent",
        ),
    ),
    *_in(
        "workers.py",
        (
            "guardian-stays",
            "a guardian stays while there are workers",
            "self._process is None or marked(marks(self._token))",
            "self._process is None",
            f"{_GUARDIAN}test_closed_with_workers_it_stays_until_the_agent_is_gone",
        ),
    ),
    *_in(
        "desk.py",
        (
            "desk-round",
            "answers count in their own round alone",
            'name.startswith(f"{READY}{round_}-")',
            "name.startswith(READY)",
            f"{_DESK}test_answers_count_in_their_round",
        ),
    ),
]
