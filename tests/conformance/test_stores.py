"""One suite for every key-value store: what membership may rely on, whichever it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.kv import KEY_BYTES_MAX, VALUE_BYTES_MAX, Cell, KeyValueStore
from holdfast.rendezvous.memory import MemoryServer
from holdfast.rendezvous.tcp import connect_tcp, serve_tcp
from tests.support.relay import Relay

LONG_S = 30.0
ANY_BYTES = [b"", b"\0", b"\n", b"+", bytes(range(256)), b"a\nb\n", "ä€".encode(), b"x" * VALUE_BYTES_MAX]


@dataclass
class StoreBench:
    """A store and how to come to it.

    Attributes:
        connect: a new client, for keys below this prefix.
        lose_answer: the answer to the next change of `relayed` gets lost on the way, though the change is made.
        relayed: a client that this happens to.
        tells: `watch` does tell of changes.
    """

    connect: Callable[[str], KeyValueStore]
    relayed: Callable[[str], KeyValueStore]
    lose_answer: Callable[[], None]
    tells: bool


def in_threads(number: int, work: Callable[[int], None]) -> None:
    """`work(0)` … at once; whatever one raises is raised here."""
    wrong: list[BaseException] = []
    gate = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            gate.wait(LONG_S)
            work(index)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


class StoreSuite:
    """Derived classes bring a fixture `bench` with an empty store."""

    def test_nothing_is_there_at_first(self, bench: StoreBench) -> None:
        store = bench.connect("job")
        assert store.read("control") is None
        assert store.newer("control", 0) is None
        assert store.get(["a", "b"]) == {}
        assert store.list_all("nodes") == {}
        assert store.get_listed("nodes", ["n0"]) == {}
        assert store.names("nodes") == frozenset()
        store.delete(["a"])
        store.drop("nodes")

    def test_nothing_asked_is_nothing_answered(self, bench: StoreBench) -> None:
        store = bench.connect("job")
        assert store.get([]) == {}
        assert store.get_listed("nodes", []) == {}
        store.put({})
        store.delete([])

    def test_a_cell_is_set_by_whoever_knows_what_stands_there(self, bench: StoreBench) -> None:
        one, two = bench.connect("job"), bench.connect("job")
        first = one.compare_and_set("control", 0, b"first")
        assert first.value == b"first"
        assert first.revision > 0
        assert two.read("control") == first
        assert two.compare_and_set("control", 0, b"late") == first
        second = two.compare_and_set("control", first.revision, b"second")
        assert second.value == b"second"
        assert second.revision > first.revision
        assert one.compare_and_set("control", first.revision, b"late") == second
        assert bench.connect("job").compare_and_set("control", first.revision, b"by one who comes late") == second
        assert one.read("control") == second

    def test_the_same_value_again_is_a_change(self, bench: StoreBench) -> None:
        one, two = bench.connect("job"), bench.connect("job")
        first = one.compare_and_set("control", 0, b"same")
        second = one.compare_and_set("control", first.revision, b"same")
        assert second.revision > first.revision
        assert two.newer("control", first.revision) == second
        assert two.compare_and_set("control", first.revision, b"same") == second

    def test_a_cell_that_was_forgotten_is_a_store_that_was_lost(self, bench: StoreBench) -> None:
        with pytest.raises(UnavailableError) as caught:
            bench.connect("job").compare_and_set("control", 7, b"x")
        assert caught.value.code == "store_lost"

    def test_of_many_who_set_it_first_one_wins_and_all_learn_who(self, bench: StoreBench) -> None:
        stores = [bench.connect("job") for _ in range(4)]
        for attempt in range(5):
            cells: list[Cell] = []

            def claim(index: int, attempt: int = attempt, cells: list[Cell] = cells) -> None:
                cells.append(stores[index % 4].compare_and_set(f"cell-{attempt}", 0, b"%d" % index))

            in_threads(8, claim)
            assert len(cells) == 8
            assert len({(cell.value, cell.revision) for cell in cells}) == 1

    def test_no_change_is_lost_between_many_writers(self, bench: StoreBench) -> None:
        stores = [bench.connect("job") for _ in range(4)]
        won: list[int] = []

        def count(index: int) -> None:
            store, done = stores[index % 4], 0
            stands = store.read("count") or Cell(b"0", 0)
            while done < 10:
                mine = b"%d by %d" % (int(stands.value.split()[0]) + 1, index)
                stands = store.compare_and_set("count", stands.revision, mine)
                if stands.value == mine:
                    won.append(stands.revision)
                    done += 1

        in_threads(6, count)
        last = stores[0].read("count")
        assert last is not None
        assert last.value.split()[0] == b"60"
        assert len(set(won)) == 60
        assert max(won) == last.revision

    def test_a_change_that_was_not_confirmed_is_found_by_reading_back(self, bench: StoreBench) -> None:
        store = bench.relayed("job")
        first = store.compare_and_set("control", 0, b"first")
        bench.lose_answer()
        with pytest.raises(UnavailableError) as caught:
            store.compare_and_set("control", first.revision, b"ours")
        assert caught.value.code == "store_unavailable"
        stands = store.read("control")
        assert stands is not None
        assert stands.value == b"ours"
        assert stands.revision > first.revision
        assert bench.connect("job").read("control") == stands

    def test_who_looks_sees_each_change(self, bench: StoreBench) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        stands = writer.compare_and_set("control", 0, b"0")
        assert reader.newer("control", 0) == stands
        for number in range(1, 20):
            assert reader.newer("control", stands.revision) is None
            assert reader.newer("control", stands.revision) is None
            stands = writer.compare_and_set("control", stands.revision, b"%d" % number)
            assert reader.newer("control", stands.revision) is None
            assert writer.newer("control", stands.revision) is None
            stands = writer.compare_and_set("control", stands.revision, b"%d again" % number)
            assert reader.newer("control", stands.revision - 1) == stands

    def test_who_watches_is_told(self, bench: StoreBench) -> None:
        if not bench.tells:
            bench.connect("job").watch("control", pytest.fail)()
            return
        writer, watcher = bench.connect("job"), bench.connect("job")
        told, wrong = threading.Event(), threading.Event()
        end = watcher.watch("control", told.set)
        end_wrong = watcher.watch("control", wrong.set)
        stands = writer.compare_and_set("control", 0, b"0")
        for number in range(5):
            assert told.wait(LONG_S)
            while watcher.newer("control", stands.revision - 1) is None:
                told.clear()
                assert told.wait(LONG_S)
            told.clear()
            if number == 2:
                end_wrong()
                wrong.clear()
            stands = writer.compare_and_set("control", stands.revision, b"%d" % number)
        assert told.wait(LONG_S)
        assert not wrong.is_set()
        end()
        end()

    @pytest.mark.parametrize("value", ANY_BYTES, ids=lambda value: f"{len(value)}-bytes")
    def test_values_are_any_bytes(self, bench: StoreBench, value: bytes) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        cell = writer.compare_and_set("control", 0, value)
        again = writer.compare_and_set("control", cell.revision, value)
        writer.put({"plain": value})
        writer.put_listed("nodes", "n0", value)
        assert reader.read("control") == Cell(value, again.revision)
        assert reader.get(["plain"]) == {"plain": value}
        assert reader.list_all("nodes") == {"n0": value}
        assert reader.get_listed("nodes", ["n0"]) == {"n0": value}

    @pytest.mark.parametrize("key", ["a/b", "a b", "ä", "\0", "~", "k" * KEY_BYTES_MAX, "/", "..", "control"])
    def test_keys_are_any_line(self, bench: StoreBench, key: str) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        writer.compare_and_set(key, 0, b"cell")
        writer.put({key: b"plain"})
        writer.put_listed(key, key, b"listed")
        cell = reader.read(key)
        assert cell is not None
        assert cell.value == b"cell"
        assert reader.get([key]) == {key: b"plain"}
        assert reader.list_all(key) == {key: b"listed"}
        assert reader.names(key) == {key}

    @pytest.mark.parametrize("key", ["", "a\nb", "k" * (KEY_BYTES_MAX + 1)])
    def test_what_is_no_key_is_refused(self, bench: StoreBench, key: str) -> None:
        store = bench.connect("job")
        calls: list[Callable[[], object]] = [
            lambda: store.read(key),
            lambda: store.newer(key, 0),
            lambda: store.compare_and_set(key, 0, b""),
            lambda: store.get([key]),
            lambda: store.put({key: b""}),
            lambda: store.put_listed("nodes", key, b""),
            lambda: store.put_listed(key, "n0", b""),
            lambda: store.get_listed("nodes", [key]),
            lambda: store.list_all(key),
            lambda: store.delete([key]),
        ]
        for call in calls:
            with pytest.raises(UsageError) as caught:
                call()
            assert caught.value.code == "bad_key"

    def test_a_value_that_is_too_long_is_refused(self, bench: StoreBench) -> None:
        store, value = bench.connect("job"), b"x" * (VALUE_BYTES_MAX + 1)
        calls: list[Callable[[], object]] = [
            lambda: store.compare_and_set("control", 0, value),
            lambda: store.put({"key": value}),
            lambda: store.put_listed("nodes", "n0", value),
        ]
        for call in calls:
            with pytest.raises(UsageError) as caught:
                call()
            assert caught.value.code == "value_too_large"
        assert store.read("control") is None
        assert store.get(["key"]) == {}
        assert store.list_all("nodes") == {}

    def test_prefixes_and_kinds_of_keys_never_mix(self, bench: StoreBench) -> None:
        prefixes = ["job", "job/1", "job/1/cell", "job/12", ""]
        stores = {prefix: bench.connect(prefix) for prefix in prefixes}
        for prefix, store in stores.items():
            store.compare_and_set("x", 0, f"cell of {prefix}".encode())
            store.put({"x": f"plain of {prefix}".encode(), "cell/x": b"", "1/x": b""})
            store.put_listed("x", "x", f"listed of {prefix}".encode())
            store.put_listed("x/x", "y", b"")
        for prefix, store in stores.items():
            cell = store.read("x")
            assert cell is not None
            assert cell.value == f"cell of {prefix}".encode()
            assert store.get(["x"]) == {"x": f"plain of {prefix}".encode()}
            assert store.list_all("x") == {"x": f"listed of {prefix}".encode()}
        stores["job"].drop("x")
        stores["job"].delete(["x"])
        for prefix in prefixes[1:]:
            assert stores[prefix].get(["x"]) != {}
            assert stores[prefix].names("x") == {"x"}
        assert stores["job"].names("x/x") == {"y"}

    def test_many_plain_keys_are_put_got_and_deleted(self, bench: StoreBench) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        values = {f"rounds/1/seat/{number}": b"%d" % number for number in range(2500)}
        writer.put(values)
        assert reader.get([*values, "rounds/1/seat/none"]) == values
        gone = [key for number, key in enumerate(values) if number % 2]
        reader.delete([*gone, "rounds/1/seat/none"])
        assert writer.get(values) == {key: value for key, value in values.items() if key not in set(gone)}
        writer.put({gone[0]: b"back"})
        assert reader.get(gone) == {gone[0]: b"back"}

    def test_long_values_are_put_together(self, bench: StoreBench) -> None:
        values = {f"roster/{number}": bytes([number]) * VALUE_BYTES_MAX for number in range(6)}
        bench.connect("job").put(values)
        assert bench.connect("job").get(values) == values

    def test_a_large_collection_is_listed_whole(self, bench: StoreBench) -> None:
        one, two = bench.connect("job"), bench.connect("job")
        values = {f"node-{number}.abc": b"%d" % number for number in range(2000)}

        def put(index: int) -> None:
            for number, (name, value) in enumerate(values.items()):
                if number % 4 == index:
                    (one, two)[index % 2].put_listed("nodes", name, value)

        in_threads(4, put)
        for store in (one, two, bench.connect("job")):
            assert store.list_all("nodes") == values
            assert store.names("nodes") == values.keys()
            some = [*list(values)[100:1500], "nobody"]
            assert store.get_listed("nodes", some) == {name: values[name] for name in some if name in values}

    def test_what_is_in_a_collection_is_replaced_by_its_writer(self, bench: StoreBench) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        for number in range(5):
            writer.put_listed("nodes", "n0", b"%d" % number)
            assert reader.list_all("nodes") == {"n0": b"%d" % number}
            assert reader.get_listed("nodes", ["n0"]) == {"n0": b"%d" % number}
        bench.connect("job").put_listed("nodes", "n0", b"from a new client")
        writer.put_listed("nodes", "n0", b"from the old one")
        assert reader.list_all("nodes") == {"n0": b"from the old one"}
        assert reader.names("nodes") == {"n0"}

    def test_a_name_is_seen_by_all_once_it_was_put(self, bench: StoreBench) -> None:
        stores = [bench.connect("job") for _ in range(3)]
        expected: set[str] = set()
        for number in range(30):
            assert stores[0].names("nodes") == expected
            stores[number % 3].put_listed("nodes", f"n{number}", b"")
            expected.add(f"n{number}")
            for store in stores:
                assert store.names("nodes") == expected
                assert store.list_all("nodes").keys() == expected

    def test_a_put_whose_answer_was_lost_can_be_repeated(self, bench: StoreBench) -> None:
        store, other = bench.relayed("job"), bench.connect("job")
        puts: list[Callable[[], None]] = [
            lambda: store.put({"key": b"value"}),
            lambda: store.put_listed("nodes", "n0", b"first"),
            lambda: store.put_listed("nodes", "n0", b"second"),
        ]
        for put in puts:
            bench.lose_answer()
            with contextlib.suppress(UnavailableError):
                put()
            put()
        assert other.get(["key"]) == {"key": b"value"}
        assert other.list_all("nodes") == {"n0": b"second"}
        assert store.names("nodes") == {"n0"}

    def test_a_collection_is_dropped_whole(self, bench: StoreBench) -> None:
        writer, reader = bench.connect("job"), bench.connect("job")
        for number in range(10):
            writer.put_listed("rounds/1", f"n{number}", b"ready")
            writer.put_listed("rounds/2", f"n{number}", b"ready")
        assert len(reader.names("rounds/1")) == 10
        writer.drop("rounds/1")
        for store in (writer, reader):
            assert store.list_all("rounds/1") == {}
            assert len(store.list_all("rounds/2")) == 10

    def test_tidying_loses_nothing_that_is_there(self, bench: StoreBench) -> None:
        store = bench.connect("job")
        cell = store.compare_and_set("control", 0, b"stands")
        store.put({"key": b"value"})
        for number in range(5):
            store.put_listed("nodes", "n0", b"%d" % number)
            store.tidy()
        assert store.read("control") == cell
        assert store.newer("control", cell.revision) is None
        assert store.get(["key"]) == {"key": b"value"}
        assert store.list_all("nodes") == {"n0": b"4"}

    def test_one_client_is_used_by_many_threads(self, bench: StoreBench) -> None:
        store = bench.connect("job")

        def work(index: int) -> None:
            for number in range(10):
                store.put_listed("nodes", f"n{index}", b"%d" % number)
                assert store.get_listed("nodes", [f"n{index}"]) == {f"n{index}": b"%d" % number}
                store.put({f"key-{index}": b"%d" % number})
                assert store.get([f"key-{index}"]) == {f"key-{index}": b"%d" % number}
                store.newer("control", 0)

        in_threads(6, work)
        assert store.list_all("nodes") == {f"n{index}": b"9" for index in range(6)}

    def test_a_client_that_was_closed_says_so(self, bench: StoreBench) -> None:
        store, other = bench.connect("job"), bench.connect("job")
        store.close()
        store.close()
        with pytest.raises(UnavailableError) as caught:
            store.read("control")
        assert caught.value.code == "store_lost"
        assert other.read("control") is None

    def test_its_traits_say_what_it_is(self, bench: StoreBench) -> None:
        traits = bench.connect("job").traits
        assert traits.kind
        assert 0 < traits.look_s <= 1
        assert traits.survives == (traits.kind == "etcd")


class TestMemory(StoreSuite):
    @pytest.fixture
    def bench(self) -> StoreBench:
        server = MemoryServer()
        return StoreBench(server.connect, server.connect, server.lose_answer, tells=True)


@pytest.fixture(scope="module")
def tcp_port() -> Iterator[int]:
    server, port = serve_tcp("127.0.0.1", 0)
    yield port
    del server


class TestTcp(StoreSuite):
    @pytest.fixture
    def bench(self, tcp_port: int, request: pytest.FixtureRequest) -> Iterator[StoreBench]:
        stores: list[KeyValueStore] = []

        def connect(port: int, prefix: str) -> KeyValueStore:
            stores.append(connect_tcp("127.0.0.1", port, f"{request.node.nodeid}//{prefix}", LONG_S))
            return stores[-1]

        with Relay(tcp_port) as relay:
            yield StoreBench(
                lambda prefix: connect(tcp_port, prefix),
                lambda prefix: connect(relay.port, prefix),
                relay.lose_answer,
                tells=False,
            )
            for store in stores:
                store.close()
