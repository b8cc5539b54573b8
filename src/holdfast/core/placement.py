"""Placement: who has which group rank in the next round.

Nodes are taken in order: by infrastructure rank; those without one come after, by name (node2 before node10). Two
lives of one node never sit together: the one that has a seat goes on, the other is left out.

*Unit*: what is seated whole or not at all: a node, or a replacement group with all its nodes. A group that lacks a node
is no unit: its survivors are spares until it is whole again.

*Block*: so many consecutive group ranks, from a multiple of it on, that are filled from one domain or not at all. It is
as large as a segment or as a replacement group, whichever is larger; one divides the other, so units fill blocks
without a rest, and a domain of k usable nodes fills k // block of them, whoever sat where before. The job gets as many
blocks as MAX and the domains allow. Without segments all nodes count as of one domain; without groups too a block is
one group rank.

Who had a seat keeps its group rank, as follows:

    a node that came back under its old name    sits where its former life sat; a whole group likewise
    a block that lost units                     is mended in place by free units of its domain; for the ranks of a
                                                group: a whole group, else single nodes
    a domain has too few for all its blocks     the block that lost most is given up, its survivors are free
    a block that is empty or given up           is filled anew from any domain that has enough free nodes
    fewer blocks than before                    the last ones move into the gaps; only then do survivors move

Free units that never sat go first, so that no survivor is moved where a spare would do. New blocks stand in the order
of their domains' first nodes: infrastructure neighbours sit together.

Replacement groups of different sizes are not mixed. Of all that can be done (groups of one size and single nodes, or
single nodes alone) that is done which seats most nodes, then that which moves fewest. So a round placed again without a
change stays as it is, and newcomers that fit badly never make the job smaller.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from holdfast.core.membership import NO_DOMAIN, NO_INFRA_RANK, Policy
from holdfast.errors import UsageError

NOWHERE = -1
PROBLEMS_TOLD_MAX = 3
_DIGITS = re.compile(r"(\d+)", re.ASCII)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A member that could have a seat; the fields are those of its Node record."""

    member: str
    node: str
    infra_rank: int = NO_INFRA_RANK
    domain: str = NO_DOMAIN
    group: str = ""
    group_size: int = 1


class Placed(msgspec.Struct, frozen=True):
    """`seats`: members by group rank."""

    seats: tuple[str, ...]


class Short(msgspec.Struct, frozen=True):
    """Too few nodes. `reason`: how many of how many, and what cannot be used and why."""

    reason: str


class _Unit(NamedTuple):
    """`order`: its place among all nodes; `home`: the group rank of its first member before, or NOWHERE."""

    order: int
    members: tuple[str, ...]
    domain: str
    home: int


class _Block(NamedTuple):
    """`cells`: members by place, None where one is missing; `units`: what sits there from before."""

    domain: str
    cells: list[str | None]
    units: list[_Unit]


class _Free:
    """The free units of one domain, the next one last."""

    def __init__(self, units: Iterable[_Unit]) -> None:
        self.groups: list[_Unit] = []
        self.nodes: list[_Unit] = []
        for unit in sorted(units, key=lambda unit: (unit.home != NOWHERE, unit.order), reverse=True):
            (self.groups if len(unit.members) > 1 else self.nodes).append(unit)

    @property
    def num_nodes(self) -> int:
        return _num_nodes(self.nodes) + _num_nodes(self.groups)

    def fill(self, cells: list[str | None], start: int, size: int) -> int:
        """Fill so many vacant cells by a group if there is one, else by single nodes; the order of the first."""
        if size > 1 and self.groups:
            taken = [self.groups.pop()]
        else:
            taken = [self.nodes.pop() for _ in range(size)]
        cells[start : start + size] = [member for unit in taken for member in unit.members]
        return taken[0].order


def place(candidates: Iterable[Candidate], previous: tuple[str, ...], policy: Policy) -> Placed | Short:
    """Seats for the next round, or why there are too few nodes.

    Args:
        candidates: members that are alive, healthy and not leaving.
        previous: members by group rank in the last committed round; () if there was none.
    """
    nodes, homes = _nodes(candidates, previous)
    singles, groups, problems = _units(nodes, homes, policy)
    best: tuple[str, ...] = ()
    best_key, best_size = (-1, -1), 1
    for size in (*sorted(groups, reverse=True), 1):
        seats = _arrange(sorted(singles + groups.get(size, [])), max(size, policy.segment), size, policy.max_nodes)
        key = (len(seats), sum(member == before for member, before in zip(seats, previous, strict=False)))
        if key > best_key:
            best, best_key, best_size = seats, key, size
    if len(best) >= max(1, policy.min_nodes):
        return Placed(best)
    usable = singles + groups.get(best_size, [])
    return Short(_why_short(len(nodes), len(best), usable, max(best_size, policy.segment), problems, policy))


def check_groups(candidates: Iterable[Candidate], policy: Policy) -> None:
    """UsageError code "bad_policy": the replacement group of one of these cannot fit the job's rules."""
    for one in candidates:
        misfit = _misfit(one.group_size, policy) if one.group else ""
        if not misfit and one.group and policy.max_nodes % max(one.group_size, 1) != 0:
            misfit = f"does not divide {policy.max_nodes} nodes"
        if misfit:
            raise UsageError(
                f"the replacement group {one.group} of node {one.node}, {one.group_size} nodes large, {misfit}",
                code="bad_policy",
                hint="change the size of the groups, --segment or --nnodes: each has to divide the next larger one",
                group=one.group,
                group_size=one.group_size,
            )


def _nodes(candidates: Iterable[Candidate], previous: Sequence[str]) -> tuple[list[Candidate], dict[str, int]]:
    """One candidate for each node, in order, and where those that had a seat sat: node -> group rank."""
    ranks = {member: rank for rank, member in enumerate(previous)}
    chosen: dict[str, Candidate] = {}
    for one in candidates:
        other = chosen.get(one.node)
        if other is None or (one.member not in ranks, one.member) < (other.member not in ranks, other.member):
            chosen[one.node] = one
    homes = {member.rpartition(".")[0]: rank for member, rank in ranks.items()}
    return sorted(chosen.values(), key=_order), {node: rank for node, rank in homes.items() if node in chosen}


def _order(one: Candidate) -> tuple[bool, int, list[str | int], str]:
    if one.infra_rank >= 0:
        return False, one.infra_rank, [], one.member
    name: list[str | int] = list(_DIGITS.split(one.node))
    name[1::2] = map(int, name[1::2])
    return True, 0, name, one.member


def _units(
    nodes: Sequence[Candidate], homes: dict[str, int], policy: Policy
) -> tuple[list[_Unit], dict[int, list[_Unit]], list[str]]:
    """Single nodes; whole groups by their size; and why other groups cannot be used."""
    singles: list[_Unit] = []
    members: dict[str, list[tuple[int, Candidate]]] = defaultdict(list)
    for order, one in enumerate(nodes):
        if one.group and one.group_size > 1:
            members[one.group].append((order, one))
        else:
            domain = one.domain if policy.segment > 1 else ""
            singles.append(_Unit(order, (one.member,), domain, homes.get(one.node, NOWHERE)))
    groups: dict[int, list[_Unit]] = defaultdict(list)
    problems: list[str] = []
    at = {rank: node for node, rank in homes.items()} if members else {}
    for name, found in members.items():
        size = max(one.group_size for _, one in found)
        found = sorted(sorted(found, key=lambda each: (each[1].node not in homes, each[0]))[:size])
        problem = _misfit(size, policy)
        if len(found) < size:
            problem = f"has {len(found)} of its {size} nodes"
        elif problem:
            problem = f"has {size} nodes, which {problem}"
        elif policy.segment > 1 and len({one.domain for _, one in found}) > 1:
            problem = "lies in several domains, segments need one"
        if problem:
            problems.append(f"replacement group {name} {problem}")
            continue
        domain = found[0][1].domain if policy.segment > 1 else ""
        seated, home = _at_home([one for _, one in found], homes, at)
        groups[size].append(_Unit(found[0][0], seated, domain, home))
    return singles, groups, problems


def _misfit(size: int, policy: Policy) -> str:
    """Why replacement groups of this size can never be used; "": they can."""
    small, large = sorted((max(size, 1), policy.segment))
    if size < 1:
        return "is none"
    if size > policy.max_nodes:
        return f"is more than the {policy.max_nodes} nodes of the job"
    return f"neither divides nor holds segments of {policy.segment} whole" if large % small else ""


def _at_home(found: list[Candidate], homes: dict[str, int], at: dict[int, str]) -> tuple[tuple[str, ...], int]:
    """A whole group's members by group rank, and where it sits: where those of it sat that had a seat, if alone."""
    size = len(found)
    starts = {homes[one.node] // size * size for one in found if one.node in homes}
    members = {one.node: one.member for one in found}
    start = starts.pop() if len(starts) == 1 else NOWHERE
    if start == NOWHERE or any(at[rank] not in members for rank in range(start, start + size) if rank in at):
        return tuple(members.values()), NOWHERE
    newcomers = [one.node for one in reversed(found) if one.node not in homes]
    return tuple(members[at[r] if r in at else newcomers.pop()] for r in range(start, start + size)), start


def _arrange(units: Sequence[_Unit], block: int, size: int, max_nodes: int) -> tuple[str, ...]:
    """As many full blocks as there can be, as members by group rank. `size`: of the groups among `units`."""
    domains: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        domains[unit.domain].append(unit)
    num_blocks = min(max_nodes // block, sum(_num_nodes(its) // block for its in domains.values()))
    standing = _standing(units, block)
    kept = sorted(index for domain, its in domains.items() for index in _mendable(standing[domain], its, size))
    kept = kept[:num_blocks]
    blocks = {index: each for its in standing.values() for index, each in its.items()}
    taken = {unit.order for index in kept for unit in blocks[index].units}
    free = {domain: _Free(unit for unit in its if unit.order not in taken) for domain, its in domains.items()}
    for index in kept:
        _mend(blocks[index].cells, free[blocks[index].domain], size)
    filled = {index: blocks[index].cells for index in kept if index < num_blocks}
    moved = [blocks[index].cells for index in kept if index >= num_blocks]
    gaps = [index for index in range(num_blocks) if index not in filled]
    filled.update(zip(gaps, moved + _fresh(free, block, size, num_blocks - len(kept)), strict=True))
    seats = tuple(member for index in range(num_blocks) for member in filled[index] if member is not None)
    assert len(seats) == num_blocks * block
    return seats


def _num_nodes(units: Iterable[_Unit]) -> int:
    return sum(len(unit.members) for unit in units)


def _standing(units: Iterable[_Unit], block: int) -> dict[str, dict[int, _Block]]:
    """What is left of the last round: by domain and place the blocks, each with those units that are of its domain."""
    at: dict[int, list[_Unit]] = defaultdict(list)
    for unit in units:
        if unit.home != NOWHERE:
            at[unit.home // block].append(unit)
    standing: dict[str, dict[int, _Block]] = defaultdict(dict)
    for index, found in at.items():
        domain = found[0].domain
        if len(found) > 1 and any(unit.domain != domain for unit in found):
            counts = Counter(unit.domain for unit in found for _ in unit.members)
            domain = max(counts, key=lambda each: counts[each])
            found = [unit for unit in found if unit.domain == domain]
        cells: list[str | None] = [None] * block
        for unit in found:
            start = unit.home % block
            cells[start : start + len(unit.members)] = unit.members
        standing[domain][index] = _Block(domain, cells, found)
    return standing


def _vacant(cells: Sequence[str | None], size: int) -> tuple[list[int], list[int]]:
    """Where a whole group of `size` could sit, and the other vacant places, which only single nodes can take."""
    whole: list[int] = []
    rest: list[int] = []
    if None not in cells:
        return whole, rest
    for start in range(0, len(cells), size):
        vacant = [place for place in range(start, start + size) if cells[place] is None]
        if len(vacant) == size:
            whole.append(start)
        else:
            rest += vacant
    return whole, rest


def _mendable(blocks: dict[int, _Block], units: Sequence[_Unit], size: int) -> list[int]:
    """Those blocks of one domain that its free `units` can mend, once the blocks that lost most are given up."""
    order = sorted(blocks, key=lambda index: (blocks[index].cells.count(None), index))
    if not order or None not in blocks[order[-1]].cells:
        return order
    needs = [tuple(map(len, _vacant(blocks[index].cells, size))) for index in order]
    sitting = {unit.order for each in blocks.values() for unit in each.units}
    free = Counter(len(unit.members) for unit in units if unit.order not in sitting)
    whole, rest = sum(need[0] for need in needs), sum(need[1] for need in needs)
    while rest + max(0, whole - (free[size] if size > 1 else 0)) * size > free[1]:
        whole, rest = whole - needs[-1][0], rest - needs.pop()[1]
        free.update(len(unit.members) for unit in blocks[order.pop()].units)
    return order


def _mend(cells: list[str | None], free: _Free, size: int) -> None:
    whole, rest = _vacant(cells, size)
    for start in rest:
        free.fill(cells, start, 1)
    for start in whole:
        free.fill(cells, start, size)


def _fresh(free: dict[str, _Free], block: int, size: int, count: int) -> list[list[str | None]]:
    """`count` full blocks of free units: domain after domain, whole groups before single nodes."""
    made: list[tuple[int, int, list[str | None]]] = []
    for place, its in enumerate(free.values()):
        for _ in range(min(count - len(made), its.num_nodes // block)):
            cells: list[str | None] = [None] * block
            first = min([its.fill(cells, start, size) for start in range(0, block, size)])
            made.append((place, first, cells))
    return [cells for _, _, cells in sorted(made, key=lambda each: each[:2])]


def _why_short(
    present: int, seated: int, usable: Sequence[_Unit], block: int, problems: list[str], policy: Policy
) -> str:
    low = max(1, policy.min_nodes)
    need = -(-low // block) * block
    if need > policy.max_nodes:
        return f"no multiple of {block} nodes lies between MIN {low} and MAX {policy.max_nodes}"
    what = "segments" if block == policy.segment else "replacement groups"
    counts = Counter(unit.domain for unit in usable for _ in unit.members)
    for domain, count in counts.items():
        if count % block:
            nodes = f"{count} node{'s' if count > 1 else ''}"
            where = f"domain {domain} has {nodes}" if policy.segment > 1 else f"{nodes} could sit"
            problems = [*problems, f"{where}, {what} take {block}"]
    if len(problems) > PROBLEMS_TOLD_MAX:
        problems = [*problems[:PROBLEMS_TOLD_MAX], f"and {len(problems) - PROBLEMS_TOLD_MAX} more such"]
    there = f"{present} of {need} nodes" if present < need else f"{seated} of {need} nodes, though {present} are here"
    return "; ".join([f"waiting: {there}", *problems])
