"""What is seen of a run, and what that may cost: the rules of event files, `status` and metrics, removed one by one."""

from __future__ import annotations

from tests.mutants.drive import Mutant

_EVENTS = "tests/spec/test_events.py::"
_FOLD = "tests/overview/test_fold.py::"
_FILES = "tests/story/test_eventfiles.py::"
_METRICS = "tests/membership/test_metrics.py::"

MUTANTS = [
    Mutant(
        name="events-named-early",
        rule="a directory is asked for by name only once a listing shows it",
        file="events.py",
        old="            if not _lists(self._seen, self._left[0]):\n                return False\n",
        new="",
        tests=(f"{_EVENTS}test_a_name_that_no_listing_has_shown_is_never_asked_for",),
    ),
    Mutant(
        name="events-own-thread",
        rule="an agent's events are written by a thread of their own",
        file="events.py",
        old="    return PatientLog(path, process, ready=Appearing(path.parent))\n",
        new="    return EventLog(path, process, ready=Appearing(path.parent))\n",
        tests=(
            f"{_EVENTS}test_a_directory_may_come_later_and_is_never_made",
            f"{_EVENTS}test_a_quiet_process_touches_its_file",
        ),
    ),
    Mutant(
        name="events-touch",
        rule="a quiet process touches its file",
        file="events.py",
        old="                    self._touch()\n",
        new="",
        tests=(f"{_EVENTS}test_a_quiet_process_touches_its_file",),
    ),
    Mutant(
        name="events-kept",
        rule="what was said too early is kept",
        file="events.py",
        old="        self._early = lines[-EARLY_MAX:]\n",
        new="        self._early = []\n",
        tests=("tests/spec/test_dead.py::test_events_touch_nothing_before_the_channel_is_there",),
    ),
    Mutant(
        name="tail-whole-lines",
        rule="a line that is cut is left out of a tail",
        file="eventfiles.py",
        old="    for line in lines[1 if begin else 0 : -1]:\n",
        new="    for line in lines[1:]:\n",
        tests=(f"{_FILES}test_a_tail_is_what_stands_whole_in_the_last_bytes",),
    ),
    Mutant(
        name="status-deep",
        rule="coordinators' files are read further back",
        file="overview/tails.py",
        old="            if tail.limit_bytes < DEEP_BYTES:\n",
        new="            if False:\n",
        tests=(f"{_FOLD}test_a_line_with_a_thousand_seats_is_found_far_back",),
    ),
    Mutant(
        name="status-bounded",
        rule="only so many bytes are read",
        file="overview/tails.py",
        old="            if num_bytes + min(limit, status.st_size) > BYTES_MAX:\n                break\n",
        new="",
        tests=(f"{_FOLD}test_what_is_read_is_bounded",),
    ),
    Mutant(
        name="status-lineage",
        rule="what lies outside of the lineage has no lag",
        file="overview/versions.py",
        old="        if self.newest is None or self.outside(version):\n",
        new="        if self.newest is None:\n",
        tests=(f"{_FOLD}test_a_server_outside_of_the_lineage",),
    ),
    Mutant(
        name="status-attempt",
        rule="another attempt begins anew",
        file="overview/job.py",
        old="            decided = Decided()  # the first coordinator of another attempt\n",
        new="            pass\n",
        tests=(f"{_FOLD}test_another_attempt_begins_anew",),
    ),
    Mutant(
        name="status-silent-sync",
        rule="what a sync that is silent said is not believed",
        file="overview/servers.py",
        old="    if silent_s > SILENT_S:\n",
        new="    if False:\n",
        tests=(f"{_FOLD}test_a_sync_that_was_stopped_is_not_missed_and_one_that_died_is",),
    ),
    Mutant(
        name="metrics-first",
        rule="the page of metrics is there before a store is served or asked",
        file="rendezvous/joining.py",
        old="    metrics = AgentMetrics(settings.metrics)  # before a store is served that others come to rely on\n",
        new="    _open(settings)\n    metrics = AgentMetrics(settings.metrics)\n",
        tests=(f"{_METRICS}test_a_port_in_use_ends_the_agent_before_it_serves_a_store",),
    ),
]
