"""What is explored, and how much of it there is.

Publisher 1 reigns, publisher 2 may replace it at any time and go back to any version that it holds, or to nothing;
publisher 1 and its sweeper then are zombies that go on. Every actor may stop for ever at any point, and files are
read late, unless it says otherwise. Each of the large ones has 3 versions, 2 consumers, 2 sweepers, 2 publishers, and
adds one kind of trouble; all of it together at that size is beyond any machine. The small ones put the kinds of
trouble together at a smaller size. Nothing is cut off but what `Size` names: a consumer has at most one version
(`at_once`: two) when it asks for the next one, a sweeper takes at most one other for dead (`expired_at_most`), a
consumer comes back once (`lives`). Within that, `states` (in millions, up to symmetry) is all that can be reached.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.model.world import Size


class Configuration(NamedTuple):
    name: str
    covers: str
    size: Size
    states: str


LARGE = (
    Configuration("late reads", "sums of stale reads up to the settling", Size(stale=2), "40.0 M"),
    Configuration(
        "coming back", "one consumer crashes, comes back and takes over its holds", Size(lives=(2, 1)), "30.4 M"
    ),
    Configuration("taken for dead by the new sweeper", "expiry at any time", Size(expiry=(2,)), "28.5 M"),
    Configuration("taken for dead by the zombie", "expiry at any time", Size(expiry=(1,)), "23.4 M"),
    Configuration(
        "any versions", "three of publisher 1, or one of it and two of publisher 2", Size(per_cycle=(3, 2)), "19.5 M"
    ),
    Configuration(
        "every and staged", "consumers of other modes side by side", Size(modes=("every", "staged")), "23.2 M"
    ),
    Configuration("two at once", "a consumer holds the next version beside the last one", Size(at_once=2), "11.6 M"),
    Configuration("late listings", "versions come and go late in listings", Size(late_listings=True), "10.9 M"),
    Configuration(
        "failing and acknowledging", "what fails is given again", Size(fails=True, acknowledges=True), "10.7 M"
    ),
    Configuration(
        "torn looks", "whoever looks may freeze between any two files", Size(stale=0, torn=True, at_once=2), "9.5 M"
    ),
    Configuration(
        "twin sweepers",
        "two sweepers of one cycle, one of them the successor of the other; removals fail",
        Size(sweepers=(1, 1), at_once=2, removals_fail=True),
        "8.1 M",
    ),
    Configuration(
        "three consumers, no trouble",
        "3 versions, 3 consumers, 2 sweepers; rewinds and zombies all the same",
        Size(modes=("newest",) * 3, stale=0, bits=(11, 11, 9)),
        "3.9 M",
    ),
    Configuration(
        "unnoticed", "a sweeper that never notices a consumer's new file", Size(stale=0, unseen=(1,)), "1.1 M"
    ),
)

SMALL = (
    Configuration(
        "torn and late, one consumer",
        "torn looks with late reads of the fine kind, coming back, acknowledging",
        Size(modes=("newest",), stale=2, torn=True, lives=(2,), acknowledges=True),
        "10.2 M",
    ),
    Configuration(
        "everything, one consumer",
        "expiry by both, coming back, failing, acknowledging, failed removals, two versions",
        Size(
            versions=2,
            modes=("newest",),
            expiry=(1, 2),
            lives=(2,),
            fails=True,
            acknowledges=True,
            removals_fail=True,
        ),
        "7.3 M",
    ),
    Configuration(
        "entering, one consumer",
        "a sweeper that enters, may not notice files, may die; coming back",
        Size(modes=("newest",), unseen=(1,), entering=True, lives=(2,)),
        "6.6 M",
    ),
    Configuration(
        "anything pinned, one consumer",
        "any version may be kept at any look",
        Size(modes=("newest",), pins=True),
        "0.2 M",
    ),
)

# A few seconds of the above for every run of the tests: what it takes to notice a lost rule (tests/mutants).
QUICK = (
    Configuration("rewind", "both publishers, late reads", Size(modes=("newest",), at_once=2), "0.3 M"),
    Configuration(
        "fine time",
        "sums of stale reads",
        Size(versions=2, modes=("newest", "newest"), sweepers=(1,), stale=2),
        "0.4 M",
    ),
    Configuration(
        "dead or alive",
        "expiry, coming back, acknowledging",
        Size(versions=2, modes=("newest",), sweepers=(1,), expiry=(1,), lives=(2,), acknowledges=True),
        "0.1 M",
    ),
    Configuration("torn", "torn looks", Size(modes=("newest",), stale=0, torn=True), "0.2 M"),
    Configuration("other modes", "every and staged", Size(versions=2, modes=("every", "staged"), stale=0), "0.2 M"),
    Configuration(
        "twins",
        "two sweepers of one cycle",
        Size(modes=("newest",), sweepers=(1, 1), per_cycle=(3, 0), stale=0),
        "0.2 M",
    ),
    Configuration(
        "blocked", "three versions of publisher 1", Size(modes=("newest",), per_cycle=(3, 0), stale=0), "0.1 M"
    ),
    Configuration(
        "entering",
        "a sweeper that enters and may not notice files",
        Size(versions=2, modes=("newest",), sweepers=(1,), unseen=(1,), entering=True, lives=(2,)),
        "0.2 M",
    ),
)
