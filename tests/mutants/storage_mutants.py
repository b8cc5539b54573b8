"""Every sync, rename and order of design 4.2 in the shells and the storage, taken away or turned round, one at a time.

Each mutant is a change of text that leaves a program which runs, and names fast tests of which one fails.
"""

from __future__ import annotations

from tests.mutants.drive import Mutant

POSIX = "channel/posix.py"
FILES = "channel/posixfiles.py"
ROOTED = "channel/rooted.py"
OPS = "channel/ops.py"
COMMITTING = "channel/committing.py"
CLAIMING = "channel/claiming.py"
PUBLISHER = "channel/publisher.py"
REGISTER = "channel/register.py"
LIFE = "channel/life.py"
CHECKING = "channel/checking.py"
OBSERVE = "channel/observe.py"
SWEEPER = "channel/sweeper.py"
ANNOUNCING = "channel/announcing.py"
GARBAGE = "channel/garbage.py"

ORDERS = "tests/crash/test_storage_orders.py"
CRASH = f"{ORDERS}::test_a_crash_leaves_all_or_nothing_and_a_return_means_durable"
POINTS = "tests/crash/test_protocol_points.py::test_I1_to_I8_after_a_power_cut_at_any_operation"
DEATHS = "tests/crash/test_protocol_deaths.py::test_a_death_at_any_operation_harms_nobody_else"
TRACE = "tests/crash/test_protocol_trace.py"
STORAGE_FAULTS = "tests/conformance/test_storage_faults.py"
PLANTED = "tests/conformance/test_storage_posix.py::TestPlanted"
MODES = "tests/conformance/test_storage_posix.py::TestModes"
GARBAGE_TESTS = "tests/conformance/test_storage_posix.py::TestGarbage"
CONFORMANCE = "tests/conformance/test_storage.py"
CALLS = "tests/faults/test_calls.py::test_a_call_over_failing_storage_succeeds_or_says_so_and_can_be_made_again"
FULL = "tests/faults/test_full_disk.py"
SYNCS = "tests/faults/test_syncs.py"
UNREADABLE = "tests/faults/test_unreadable.py"
REMOVED = "tests/faults/test_removed.py"
SPEC_SWEEPER = "tests/spec/test_sweeper.py"
SPEC_CONSUMER = "tests/spec/test_consumer.py"
SPEC_PUBLISHER = "tests/spec/test_publisher.py"
HOSTILE = "tests/spec/test_hostile.py"


def _mutant(name: str, rule: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(name=name, rule=rule, file=file, old=old, new=new, tests=tests)


RENAME_TREE = """                self._seal(f"{STAGING}/{check_nonce(nonce)}", manifest)
                self._ops.rename(staging, nonce, versions, name)
"""
SYNC_COMMIT = """                self._root.sync_directory(versions)
                self._root.sync_directory(staging)
            except"""
LINK = "                self._ops.link(at, temporary, at, name)\n"

PUBLISH = (
    _mutant(
        "payload files are not synced",
        "publish: each file synced",
        FILES,
        "                self._ops.fsync(handle)\n",
        "                pass\n",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[publish-ext4-like]"),
    ),
    _mutant(
        "an error of a payload file's sync is swallowed",
        "publish: an fsync that fails fails the publish",
        FILES,
        """        except OSError as error:
            self._failure = storage_error(error, self._path)
        self._release(handle)
""",
        """        except OSError:
            pass
        self._release(handle)
""",
        (f"{STORAGE_FAULTS}::test_a_failed_sync_of_a_payload_file_fails_it_for_good",),
    ),
    _mutant(
        "an error of a payload file's write is forgotten",
        "publish: an error anywhere fails the publish",
        FILES,
        "            self._failure = storage_error(error, self._path)\n            raise self._failure from error\n",
        "            raise storage_error(error, self._path) from error\n",
        (f"{STORAGE_FAULTS}::test_a_failed_write_cannot_be_closed_away",),
    ),
    _mutant(
        "records and the manifest are not synced",
        "publish: manifest, synced; claim, hold, tombstone: temporary file, sync",
        ROOTED,
        "            if sync:\n                self.ops.fsync(handle)\n",
        "",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[begin-ext4-like]"),
    ),
    _mutant(
        "the staged tree's directories are not synced",
        "publish: the directory synced",
        POSIX,
        'if e.kind == "directory")\n                self._root.sync_directory(handle)\n',
        'if e.kind == "directory")\n',
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[publish-weak-posix]"),
    ),
    _mutant(
        "only the top of the staged tree is synced",
        "publish: every directory of the tree synced",
        POSIX,
        "for e in self._scan(directory) if e.kind",
        "for e in () if e.kind",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[publish-weak-posix]"),
    ),
    _mutant(
        "the tree is renamed before it is sealed",
        "publish: manifest and directories before the rename",
        POSIX,
        RENAME_TREE,
        """                self._ops.rename(staging, nonce, versions, name)
                self._seal(f"{VERSIONS}/{name}", manifest)
""",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[begin-ext4-like]"),
    ),
    _mutant(
        "versions/ is not synced after the rename",
        "publish: versions/ synced",
        POSIX,
        SYNC_COMMIT,
        "                self._root.sync_directory(staging)\n            except",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[begin-ext4-like]"),
    ),
    _mutant(
        "staging/ is not synced after the rename",
        "publish: both directories of the rename synced",
        POSIX,
        SYNC_COMMIT,
        "                self._root.sync_directory(versions)\n            except",
        (f"{CRASH}[publish-weak-posix]",),
    ),
    _mutant(
        "what is being written lies where versions are",
        "publish: payload into staging/",
        FILES,
        'STAGING = "staging"',
        'STAGING = "versions"',
        (f"{POINTS}[begin-ext4-like]",),
    ),
    _mutant(
        "CURRENT is pointed at a version before that is there",
        "publish: then CURRENT",
        COMMITTING,
        "        assert self.writing is not None\n        for tried",
        "        assert self.writing is not None\n        self._point(version)\n        for tried",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep",),
    ),
    _mutant(
        "CURRENT is written in place",
        "publish: CURRENT by temporary file and rename",
        POSIX,
        """                self._ops.rename(at, temporary, at, name)
            except OSError as error:
                try:
                    if not self._stands""",
        """                with suppress(FileNotFoundError):
                    self._ops.unlink(at, name)
                self._root.write_file(at, name, data, sync=durable)
            except OSError as error:
                try:
                    if not self._stands""",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{CRASH}[replace-ext4-like]"),
    ),
    _mutant(
        "every failure of a sync is tolerated",
        "publish: only EINVAL and ENOTSUP are tolerated",
        ROOTED,
        "            if error.errno not in _NO_DIRECTORY_SYNC:\n                raise\n",
        "",
        (SYNCS,),
    ),
    _mutant(
        "a commit whose answer was lost is not read back",
        "publish: a lost answer is judged by reading back",
        POSIX,
        "                if not self._committed(versions, name, manifest, error):\n",
        "                if True:\n",
        (f"{STORAGE_FAULTS}::test_any_operation_may_fail_once", f"{CALLS}[publish]"),
    ),
    _mutant(
        "a commit is taken to have happened because something stands there",
        "publish: ours, not ours, or unknown",
        POSIX,
        '            if self._stands(tree, MANIFEST, manifest, f"{path}/{MANIFEST}"):\n                return True\n',
        "            return True\n",
        (f"{CONFORMANCE}::TestPublishing",),
    ),
    _mutant(
        "a commit that is not known to be durable counts as done",
        "publish: when it returned, it survives a power cut",
        POSIX,
        """            except OSError as error:
                raise OutcomeUnknownError(
                    f"{path}: visible, but""",
        """            except FileExistsError as error:
                raise OutcomeUnknownError(
                    f"{path}: visible, but""",
        (f"{CALLS}[publish]", f"{STORAGE_FAULTS}::test_any_operation_may_fail_once"),
    ),
    _mutant(
        "a publish that failed leaves its tree behind",
        "publish: nothing becomes visible, nothing stays",
        COMMITTING,
        "        if nonce is not None:\n            try:\n",
        "        if nonce is None:\n            try:\n",
        (f"{FULL}::test_a_publish_that_does_not_fit_shows_nothing_and_works_once_there_is_room",),
    ),
    _mutant(
        "a publish that failed changes what counts as published",
        "publish: the step may be published again",
        COMMITTING,
        "        self._staged_files = files\n",
        "        self._staged_files = self._last_files = files\n",
        (f"{CALLS}[publish other bytes]",),
    ),
    _mutant(
        "the claims are not looked at before the commit",
        "fencing: a fenced publisher's version does not grow the channel",
        COMMITTING,
        "events.append(publish.ClaimsRead(self._read_claims()))",
        "events.append(publish.ClaimsRead(0))",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "equal bytes are the same version though it is announced",
        "publish: equal bytes are the same version while that one is untombstoned",
        COMMITTING,
        "            if seen.record is None or last in versions_in(seen.record.tombstones):\n",
        "            if seen.record is None:\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "equal bytes are the same version though it is gone",
        "publish: equal bytes are the same version while it is there",
        COMMITTING,
        "        if last not in self._observer.versions():\n            return None\n",
        "",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a hint that cannot be written fails the publish",
        "publish: CURRENT and the legacy link are hints",
        COMMITTING,
        '        except HoldfastError as error:\n            self._events.emit("hint_failed"',
        '        except ZeroDivisionError as error:\n            self._events.emit("hint_failed"',
        (f"{CALLS}[publish]",),
    ),
    _mutant(
        "a reader may see a file of an earlier umask",
        "storage: directories 0755 and files 0644 whatever the umask",
        FILES,
        "                ops.chmod(handle, FILE_MODE)\n",
        "                pass\n",
        (MODES,),
    ),
    _mutant(
        "a directory keeps what the umask made of it",
        "storage: directories 0755 whatever the umask",
        ROOTED,
        "            self.ops.chmod(handle, mode)\n",
        "            pass\n",
        (MODES,),
    ),
)

CLAIM = (
    _mutant(
        "a claim replaces what stands there",
        "claim: link(), so that of many one wins",
        POSIX,
        LINK,
        "                self._ops.rename(at, temporary, at, name)\n",
        (f"{CONFORMANCE}::TestCreate", f"{SPEC_PUBLISHER}::test_of_many_publishers_at_once_one_claims_each_cycle"),
    ),
    _mutant(
        "a claim is made under its own name",
        "claim: made as a whole",
        POSIX,
        LINK,
        "                self._root.write_file(at, name, data)\n",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{CRASH}[create-ext4-like]"),
    ),
    _mutant(
        "a claim's directory is not synced",
        "claim: once open returned, it stands after a power cut",
        POSIX,
        """            self._root.sync_directory(at)
            self._root.discard(at, temporary)
""",
        """            self._root.discard(at, temporary)
""",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[begin-ext4-like]"),
    ),
    _mutant(
        "a claim whose answer was lost is somebody else's",
        "claim: read back",
        POSIX,
        "if not self._stands(at, name, data, path):\n                    if error.errno",
        "if True:\n                    if error.errno",
        (f"{STORAGE_FAULTS}::test_a_claim_that_was_answered_with_exists_is_judged_by_its_bytes",),
    ),
    _mutant(
        "whatever stands where a claim was to be made is ours",
        "claim: ours, not ours, or unknown",
        POSIX,
        'raise ConflictError(f"{path}: somebody else\'s bytes stand there", code="exists", path=path)\n\n    def',
        "return True\n\n    def",
        (f"{CONFORMANCE}::TestCreate", f"{SPEC_PUBLISHER}::test_of_many_publishers_at_once_one_claims_each_cycle"),
    ),
    _mutant(
        "losing the race counts as winning it",
        "claim: losing the race means asking again",
        CLAIMING,
        "            return publish.ClaimLost()\n",
        "            return publish.ClaimMade()\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a claim that may stand is not made sure of",
        "claim: read back until it can be told",
        CLAIMING,
        "CREATE_TRIES = 5",
        "CREATE_TRIES = 1",
        (SYNCS,),
    ),
    _mutant(
        "a claim that is given up stays open",
        "claim: a job whose opening failed can open again",
        CLAIMING,
        "            if tried == CREATE_TRIES:\n                _withdraw(channel, effect.cycle, record)\n",
        "            if tried == CREATE_TRIES:\n",
        (f"{CALLS}[open publisher]",),
    ),
    _mutant(
        "a claim that is given up is closed whosever it is",
        "claim: nobody closes another's reign",
        CLAIMING,
        "        if channel.store.read(claim_path(cycle), limit_bytes=len(claim)) == claim:\n",
        "        if channel.store.read(claim_path(cycle), limit_bytes=10**6):\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a first beat that fails closes the publisher",
        "claim: a claim that stands opens its publisher",
        PUBLISHER,
        '        except (UnavailableError, OutcomeUnknownError) as error:\n            self._events.emit("beat_failed"',
        '        except ZeroDivisionError as error:\n            self._events.emit("beat_failed"',
        (f"{CALLS}[open publisher]",),
    ),
)

CONSUME = (
    _mutant(
        "a hold is not durable",
        "consume: write the hold, durably",
        REGISTER,
        "            self._channel.claims.replace(self._path, encode(self._record(state())))\n",
        "            self._channel.claims.replace(self._path, encode(self._record(state())), durable=False)\n",
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens", f"{POINTS}[take-ext4-like]"),
    ),
    _mutant(
        "the sweepers' files are not read after the hold",
        "consume: re-read every sweeper's file",
        LIFE,
        "            case consume.ReadSweepers():\n                return self._register.look()\n",
        "            case consume.ReadSweepers():\n                return consume.SweepersRead(frozenset())\n",
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens",),
    ),
    _mutant(
        "the sweepers' files are read before the hold is written",
        "consume: hold, then look",
        LIFE,
        """            case consume.WriteRecord():
                self._register.write(lambda: self.state)
                return consume.Written()
            case consume.ReadSweepers():
                return self._register.look()
""",
        """            case consume.WriteRecord():
                self.early = self._register.look()
                self._register.write(lambda: self.state)
                return consume.Written()
            case consume.ReadSweepers():
                return self.early
""",
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens",),
    ),
    _mutant(
        "the own lease is not looked at before an acknowledgement",
        "consume: look at the own lease again, acknowledge",
        LIFE,
        "return consume.LeaseRead(version, self._register.look().expired)",
        "return consume.LeaseRead(version, False)",
        (f"{TRACE}::test_a_consumer_looks_at_its_lease_before_it_acknowledges",),
    ),
    _mutant(
        "tombstones are not seen",
        "consume: an announced version may vanish at any moment",
        REGISTER,
        "            tombstoned=frozenset().union(*(versions_in(record.tombstones) for record in records.values())),\n",
        "            tombstoned=frozenset(),\n",
        (f"{SPEC_SWEEPER}::test_I4_an_announced_version_is_given_to_nobody",),
    ),
    _mutant(
        "a consumer does not see that it was expired",
        "consume: a consumer that finds itself expired drops its holds",
        REGISTER,
        "        expired = any(not own.isdisjoint(record.expired) for record in records.values())\n",
        "        expired = False\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a consumer's own silence is nothing to it",
        "consume: silent for a lease, it has lost what it held",
        REGISTER,
        "        if silent_s > self._channel.lease_s:\n",
        "        if silent_s < 0:\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a sweeper's file that cannot be read announces nothing",
        "consume: what cannot be read may announce anything",
        REGISTER,
        "        if unreadable:\n",
        "        if False:\n",
        (f"{UNREADABLE}::test_an_unreadable_sweepers_file_may_announce_anything_until_it_stands_still",),
    ),
    _mutant(
        "the life before is ended before its holds are taken over",
        "consume: a restart under the same name takes the holds over",
        REGISTER,
        "            try:\n                read = self._appear(inherited, older)\n",
        "            self._end(older)\n            try:\n                read = self._appear(inherited, older)\n",
        (f"{POINTS}[come back-ext4-like]",),
    ),
    _mutant(
        "a registration that failed half-way is a younger life",
        "consume: the younger of two lives goes on, and one's own tries are no life",
        REGISTER,
        "for life in lives if life not in self._tries)",
        "for life in lives)",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "one stale look ends a hold of the life before",
        "consume: not visible yet is looked at again",
        LIFE,
        "        if isinstance(verdict, consume.NotVisible):\n            since_s",
        "        if False:\n            since_s",
        (f"{CALLS}[open consumer]",),
    ),
    _mutant(
        "a release is dropped when it cannot be written",
        "consume: a release that is not written yet is written with the next beat",
        LIFE,
        '            self._events.emit("release_late", str(error), version=version, code=error.code)\n',
        "            raise error\n",
        (f"{CALLS}[release]",),
    ),
    _mutant(
        "versions/ is not listed before a version is opened",
        "consume: never ask for a name before a listing showed it",
        CHECKING,
        '    store.list("versions")\n    store.list(directory)\n    data',
        "    store.list(directory)\n    data",
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens",),
    ),
    _mutant(
        "a version is not listed before its files are opened",
        "consume: look again through a fresh listing of the parent",
        CHECKING,
        '    store.list("versions")\n    store.list(directory)\n    data',
        '    store.list("versions")\n    data',
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens",),
    ),
    _mutant(
        "STABLE is not held against the manifest",
        "consume: the manifest is checked too",
        CHECKING,
        "    if stable != stable_text(data):\n",
        "    if stable is None:\n",
        (f"{HOSTILE}::test_a_stable_that_does_not_fit_is_looked_at_again_and_then_refused",),
    ),
    _mutant(
        "the channel is not listed before the participants are",
        "consume: list the channel, then what is in it",
        OBSERVE,
        '        self._names = frozenset(entry.name for entry in self._store.list(""))\n',
        '        self._names = self._names or frozenset(entry.name for entry in self._store.list(""))\n',
        (f"{TRACE}::test_a_consumer_holds_then_looks_then_opens",),
    ),
    _mutant(
        "nobody is seen in a directory that is away",
        "consume and sweep: what cannot be seen may be anything",
        OBSERVE,
        "    if all(entry.name != directory for entry in store.list",
        "    if not directory and all(entry.name != directory for entry in store.list",
        (f"{REMOVED}::test_nothing_goes_while_it_cannot_be_seen_who_needs_it",),
    ),
)

SWEEP = (
    _mutant(
        "a tombstone is not durable",
        "sweep: write the tombstone, durably",
        ANNOUNCING,
        """            try:
                self._channel.claims.replace(self._path("json"), data)
            except UnavailableError""",
        """            try:
                self._channel.claims.replace(self._path("json"), data, durable=False)
            except UnavailableError""",
        (f"{TRACE}::test_a_sweeper_announces_then_looks_afresh_then_removes",),
    ),
    _mutant(
        "tombstones are not written",
        "sweep: write the tombstone",
        SWEEPER,
        "                self._own.write(self._record)\n                for version in sorted(tombstones):",
        "                for version in sorted(tombstones):",
        (f"{TRACE}::test_a_sweeper_announces_then_looks_afresh_then_removes",),
    ),
    _mutant(
        "the second look is the first one",
        "sweep: read claims and every consumer's file afresh",
        SWEEPER,
        "view = self._look()\n                assert",
        "view = self.seen = self.seen if self._state.tombstones else self._look()\n                assert",
        (
            f"{TRACE}::test_a_sweeper_announces_then_looks_afresh_then_removes",
            f"{SPEC_SWEEPER}::test_I4_a_hold_that_comes_before_the_second_look_keeps_the_version",
        ),
    ),
    _mutant(
        "a beat may bring back an older record",
        "sweep: a tombstone is withdrawn on purpose only",
        ANNOUNCING,
        """        with self._lock:
            if not self.key:
                return
            self._beats += 1
            data = encode(msgspec.structs.replace(record(), beat=self._beats))
""",
        """        before = record()
        with self._lock:
            if not self.key:
                return
            self._beats += 1
            data = encode(msgspec.structs.replace(before, beat=self._beats))
""",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "a version is removed where it is",
        "sweep: rename it out of versions/, then unlink",
        POSIX,
        """                self._ops.rename(versions, name, staging, target)
            except""",
        """                self._root.remove_tree(versions, name)
            except""",
        (f"{TRACE}::test_a_sweeper_announces_then_looks_afresh_then_removes", f"{POINTS}[sweep-ext4-like]"),
    ),
    _mutant(
        "versions/ is not synced before the first file goes",
        "sweep: never half a version, after a power cut neither",
        POSIX,
        "            self._root.sync_directory(versions)  # before the first unlink",
        "            pass  # before the first unlink",
        (f"{TRACE}::test_the_orders_of_publish_claim_hold_and_sweep", f"{POINTS}[sweep-weak-posix]"),
    ),
    _mutant(
        "no reserve is kept",
        "sweep: a reserve to spend on tombstones when the disk is full",
        ANNOUNCING,
        'self._channel.claims.replace(self._path("reserve"), bytes(RESERVE_BYTES))',
        'self._channel.claims.replace(self._path("reserve"), b"")',
        (f"{FULL}::test_the_reserve_is_spent_on_tombstones",),
    ),
    _mutant(
        "the reserve is not spent",
        "sweep: a reserve to spend on tombstones when the disk is full",
        ANNOUNCING,
        '                self._channel.claims.delete(self._path("reserve"))\n                self._reserved = False\n',
        "",
        (f"{FULL}::test_the_reserve_is_spent_on_tombstones",),
    ),
    _mutant(
        "an announcement that failed is not made again",
        "sweep: what was announced is durable before anything follows from it",
        SWEEPER,
        "        if self._own.failing:\n            self._own.write(self._record)",
        "        if False:\n            self._own.write(self._record)",
        (SYNCS,),
    ),
    _mutant(
        "a consumer's file that cannot be read holds nothing",
        "sweep: what cannot be read holds everything",
        SWEEPER,
        "        return protocol.Consumer(str(life), readable=False)\n",
        "        return protocol.Consumer(str(life))\n",
        (f"{UNREADABLE}::test_an_unreadable_consumers_file_holds_everything_until_it_stands_still_for_a_lease",),
    ),
    _mutant(
        "a sweeper that sees no claim sweeps",
        "sweep: by the claims; without one nothing goes",
        SWEEPER,
        "        if lineage.cycle < max(self._cycle or 0, 1 if versions else 0):\n",
        "        if lineage.cycle < 0:\n",
        (f"{REMOVED}::test_nothing_goes_while_it_cannot_be_seen_who_needs_it",),
    ),
    _mutant(
        "the dead are never buried",
        "sweep: of the dead nothing is left",
        SWEEPER,
        "        self._garbage.bury_consumers(state.expired, self._watch, self._lease_s())\n",
        "",
        (f"{DEATHS}[server]",),
    ),
    _mutant(
        "the dead are buried while they may wake",
        "sweep: a consumer that was expired finds itself there when it wakes",
        GARBAGE,
        '            if _silent_s(watch, key) >= 2 * lease_s:\n                self._channel.claims.delete(f"consumers',
        '            if _silent_s(watch, key) >= 0:\n                self._channel.claims.delete(f"consumers',
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "what a live publisher writes is garbage",
        "sweep: its own sweeper knows what it is writing",
        GARBAGE,
        "                    dead = nonce not in busy and (",
        "                    dead = (",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "temporary files of the living are garbage at once",
        "sweep: what is nobody's goes after a lease",
        GARBAGE,
        "                    dead = _silent_s(watch, _left(nonce)) >= lease_s\n",
        "                    dead = True\n",
        ("tests/faults/test_meanwhile.py",),
    ),
    _mutant(
        "temporary files are never collected",
        "sweep: no garbage is left",
        GARBAGE,
        "                    dead = _silent_s(watch, _left(nonce)) >= lease_s\n",
        "                    dead = False\n",
        (f"{DEATHS}[publisher]",),
    ),
    _mutant(
        "garbage is removed under its writer's hands",
        "sweep: a writer that wakes commits all of it or nothing",
        POSIX,
        "self._ops.rename(at, name, at, doomed)",
        "doomed = name",
        (f"{GARBAGE_TESTS}::test_a_writer_that_wakes_cannot_commit_what_a_sweep_has_left_of_its_tree",),
    ),
)

CONFINED = (
    _mutant(
        "symlinks are followed where a directory is opened",
        "nothing read from the channel leads outside of it",
        OPS,
        "flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)",
        "flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC",
        (PLANTED,),
    ),
    _mutant(
        "symlinks are followed where a file is read",
        "nothing read from the channel leads outside of it",
        OPS,
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK",
        (PLANTED,),
    ),
    _mutant(
        "what is no file is read",
        "devices and pipes inside a version are refused",
        ROOTED,
        '            if status.kind != "file":\n                raise not_a_file(path, status.kind)\n',
        "",
        (PLANTED,),
    ),
    _mutant(
        "a file may be made over what stands there",
        "a file has one writer",
        OPS,
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC",
        ("tests/crash/test_disk_model.py::TestAgreement", f"{CONFORMANCE}::TestPublishing"),
    ),
    _mutant(
        "removal follows links",
        "nothing outside is deleted",
        ROOTED,
        '            if entry.kind != "directory":\n',
        '            if entry.kind == "file":\n',
        (PLANTED,),
    ),
    _mutant(
        "records are read whatever their size",
        "limits on everything",
        ROOTED,
        "            while size <= limit_bytes and filled < len(buffer):\n",
        "            buffer = memoryview(bytearray(size + 1))\n            while filled < len(buffer):\n",
        (f"{CONFORMANCE}::TestReading",),
    ),
)

ACROSS = (
    _mutant(
        "elders go at once",
        "a taken-over hold stands in the older file until every sweeper has listed the new life",
        REGISTER,
        "records if kept.holds and read.unseen_by else {}",
        "{}",
        (
            f"{SPEC_SWEEPER}::test_I4_a_taken_over_hold_stands_in_the_older_file_until_every_sweeper_has_listed_the_new_life",
        ),
    ),
    _mutant(
        "elders fall silent",
        "the older file goes on beating",
        REGISTER,
        "            self._written_at_s = began_s  # others may have counted from any moment of the call on\n            self._beat_elders()\n",
        "            self._written_at_s = began_s\n",
        (
            f"{SPEC_SWEEPER}::test_I4_a_taken_over_hold_stands_in_the_older_file_until_every_sweeper_has_listed_the_new_life",
        ),
    ),
    _mutant(
        "an elder's end is not noticed",
        "who was taken for dead after it was taken over has lost its holds",
        REGISTER,
        "        own = {self.key, *map(str, self._elders)}\n",
        "        own = {self.key}\n",
        (f"{SPEC_SWEEPER}::test_I4_whoever_was_taken_for_dead_after_it_was_taken_over_has_lost_its_holds",),
    ),
    _mutant(
        "a lone sweeper waits for nobody",
        "two visibility bounds pass wherever others may see the channel",
        SWEEPER,
        "self._bound_s = bound_s(parties, local=self.channel.local)",
        "self._bound_s = bound_s(parties)",
        (
            f"{SPEC_SWEEPER}::test_I4_a_sweeper_that_knows_only_its_own_machine_waits_all_the_same_where_others_may_see_the_channel",
        ),
    ),
    _mutant(
        "a lone sweeper enters without waiting",
        "a sweeper settles before its first look wherever others may see the channel",
        SWEEPER,
        "*(record.party for record in records)], local=self.channel.local)",
        "*(record.party for record in records)])",
        (
            f"{SPEC_SWEEPER}::test_I4_a_sweeper_that_knows_only_its_own_machine_waits_all_the_same_where_others_may_see_the_channel",
        ),
    ),
    _mutant(
        "a claim without a last look at the lease",
        "a cycle starts from what its claimant holds",
        CLAIMING,
        "            check_start()\n",
        "",
        (
            f"{SPEC_PUBLISHER}::test_a_claimant_that_was_taken_for_dead_before_its_claim_looks_again_at_what_it_starts_from",
        ),
    ),
    _mutant(
        "copies without a lock",
        "one process's copies are never touched by another of its name",
        "channel/copies.py",
        "        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        (f"{SPEC_CONSUMER}::test_two_live_processes_of_one_name_never_touch_each_others_copies",),
    ),
)

MUTANTS = (*PUBLISH, *CLAIM, *CONSUME, *SWEEP, *CONFINED, *ACROSS)
