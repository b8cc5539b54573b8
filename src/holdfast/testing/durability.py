"""What survives a power cut: every state that a file system may legally come back with.

Two profiles.
`ext4-like`: directory operations become durable in the order in which they were made, whatever their directory, and
a rename is all or nothing. The bytes of a file that was not fsynced may be missing or cut short, even where its name
survived: a rename can reach the disk before the bytes do.
`weak-posix`: only what POSIX promises. Of the operations not yet synced any subset may survive, each by itself; a
rename between two directories is two of them (gone here, come there). Unsynced bytes may also read as zeros.

In both, fsync of a file makes its bytes and mode durable and no name; fsync of a directory makes its entries durable
(and, ext4-like, all that was done before).

Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014); the ext4 documentation (data=ordered).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

EXT4_LIKE = "ext4-like"
WEAK_POSIX = "weak-posix"
PROFILES = (EXT4_LIKE, WEAK_POSIX)

Update = tuple[int, str, int | None]  # directory, name, the inode that the name leads to (None: no such name)


@dataclass(frozen=True)
class Image:
    """A file system at rest: entries of each directory, bytes of each file, modes. Inodes are numbers."""

    entries: dict[int, dict[str, int]]
    contents: dict[int, bytes]
    modes: dict[int, int]


@dataclass(frozen=True)
class Change:
    """One operation on names (or on a directory's mode) that a power cut may take back."""

    at: int  # its place in the order of all operations
    updates: tuple[Update, ...] = ()
    mode: tuple[int, int] | None = None  # directory, mode

    def touches(self, directory: int) -> bool:
        own_mode = self.mode is not None and self.mode[0] == directory
        return own_mode or any(changed == directory for changed, _, _ in self.updates)


@dataclass
class Dirty:
    """What was done to a file since its last fsync."""

    writes: list[tuple[int, int, bytes]] = field(default_factory=list)  # place in the order, offset, bytes
    mode: int | None = None

    @property
    def at(self) -> int:
        """Place of its last write in the order of all operations."""
        return self.writes[-1][0] if self.writes else 0


class Durability:
    """Follows one disk's operations; says what is durable and what may be lost."""

    def __init__(self, profile: str, image: Image) -> None:
        assert profile in PROFILES, profile
        self.profile = profile
        self._image = image
        self._changes: list[Change] = []
        self._dirty: dict[int, Dirty] = {}
        self._clock = itertools.count(1)

    # Following

    def born(self, inode: int, mode: int, content: bytes | None) -> None:
        """A new inode exists, under no name yet; a directory if `content` is None."""
        self._image.modes[inode] = mode
        if content is None:
            self._image.entries[inode] = {}
        else:
            self._image.contents[inode] = content

    def named(self, *updates: Update) -> None:
        """One operation changed these names."""
        by_directory = [tuple(group) for _, group in itertools.groupby(updates, key=lambda update: update[0])]
        groups = by_directory if self.profile == WEAK_POSIX else [updates]
        self._changes.extend(Change(next(self._clock), group) for group in groups)

    def mode_set(self, inode: int, mode: int) -> None:
        if inode in self._image.entries:
            self._changes.append(Change(next(self._clock), mode=(inode, mode)))
        else:
            self._dirty.setdefault(inode, Dirty()).mode = mode

    def written(self, inode: int, offset: int, data: bytes) -> None:
        self._dirty.setdefault(inode, Dirty()).writes.append((next(self._clock), offset, data))

    def file_synced(self, inode: int) -> None:
        dirty = self._dirty.pop(inode, None)
        if dirty is not None:
            self._image.contents[inode] = _apply(self._image.contents[inode], dirty)
            if dirty.mode is not None:
                self._image.modes[inode] = dirty.mode

    def directory_synced(self, directory: int) -> None:
        touched = [i for i, change in enumerate(self._changes) if change.touches(directory)]
        if self.profile == EXT4_LIKE:
            touched = list(range(touched[-1] + 1)) if touched else []
        settled = set(touched)
        for i in touched:
            _settle(self._image, self._changes[i])
        self._changes = [change for i, change in enumerate(self._changes) if i not in settled]

    # After a power cut

    def states(self, limit: int) -> Iterator[Image]:
        """Legal states, the more telling ones first, some of them possibly equal; all of them if they are few.

        Deterministic: equal histories give equal states in equal order.
        """
        dirty = sorted(self._dirty)
        variants = [self._variants(inode) for inode in dirty]
        for kept, chosen in self._selections(dirty, [len(each) for each in variants], limit):
            contents, modes = dict(self._image.contents), dict(self._image.modes)
            for inode, each, choice in zip(dirty, variants, chosen, strict=True):
                contents[inode], modes[inode] = each[choice]
            image = Image({ino: dict(names) for ino, names in self._image.entries.items()}, contents, modes)
            for change, keep in zip(self._changes, kept, strict=True):
                if keep:
                    _settle(image, change)
            yield from _without_aliases(image)

    def _variants(self, inode: int) -> list[tuple[bytes, int]]:
        """Bytes and mode that a file with unsynced changes may come back with: all of it first, nothing last."""
        old, old_mode = self._image.contents[inode], self._image.modes[inode]
        dirty = self._dirty[inode]
        mode = old_mode if dirty.mode is None else dirty.mode
        new = _apply(old, dirty)
        found = [new, _apply(old, _first_half(dirty))]
        if self.profile == WEAK_POSIX:
            found.append(_apply(old, Dirty([(at, offset, bytes(len(data))) for at, offset, data in dirty.writes])))
        unique = list(dict.fromkeys(content for content in found if content != old or not dirty.writes))
        return [(content, mode) for content in unique] + [(old, old_mode)]

    def _selections(
        self, dirty: list[int], num_variants: list[int], limit: int
    ) -> Iterator[tuple[tuple[bool, ...], tuple[int, ...]]]:
        num = len(self._changes)
        if self.profile == EXT4_LIKE:
            masks = [tuple(i < cut for i in range(num)) for cut in range(num, -1, -1)]
            num_masks = len(masks)
        else:
            masks, num_masks = [], 2**num
        total = num_masks
        for count in num_variants:
            total *= count
        if total <= limit:
            every = masks or itertools.product((True, False), repeat=num)
            yield from itertools.product(every, itertools.product(*map(range, num_variants)))
            return
        yield from self._prefixes(dirty, num_variants)
        yield from self._single_deviations(num_variants)
        source = random.Random(total)  # seeded: the same subsets each time
        for _ in range(limit):
            mask = source.choice(masks) if masks else tuple(source.random() < 0.5 for _ in range(num))
            yield mask, tuple(source.randrange(count) for count in num_variants)

    def _prefixes(
        self, dirty: list[int], num_variants: list[int]
    ) -> Iterator[tuple[tuple[bool, ...], tuple[int, ...]]]:
        """All that was done up to a moment, with the files' bytes as far, or (names are faster) without them."""
        last = [self._dirty[inode].at for inode in dirty]
        moments = sorted({0, *(change.at for change in self._changes), *last}, reverse=True)
        for moment in moments:
            mask = tuple(change.at <= moment for change in self._changes)
            lost = tuple(count - 1 for count in num_variants)
            yield mask, tuple(0 if at <= moment else none for at, none in zip(last, lost, strict=True))
            yield mask, lost

    def _single_deviations(self, num_variants: list[int]) -> Iterator[tuple[tuple[bool, ...], tuple[int, ...]]]:
        """All but one, each file in each of its variants, and (weak) one alone."""
        num = len(self._changes)
        whole, kept = tuple(True for _ in range(num)), tuple(0 for _ in num_variants)
        for i, count in enumerate(num_variants):
            for variant in range(1, count):
                yield whole, (*kept[:i], variant, *kept[i + 1 :])
        if self.profile == WEAK_POSIX:
            for i in range(num):
                yield tuple(j != i for j in range(num)), kept
                yield tuple(j == i for j in range(num)), kept


def _apply(old: bytes, dirty: Dirty) -> bytes:
    data = bytearray(old)
    for _, offset, part in dirty.writes:
        if offset + len(part) > len(data):
            data.extend(bytes(offset + len(part) - len(data)))
        data[offset : offset + len(part)] = part
    return bytes(data)


def _first_half(dirty: Dirty) -> Dirty:
    left = sum(len(data) for _, _, data in dirty.writes) // 2
    torn = Dirty()
    for at, offset, data in dirty.writes:
        if left:
            torn.writes.append((at, offset, data[:left]))
            left -= min(left, len(data))
    return torn


def _settle(image: Image, change: Change) -> None:
    for directory, name, inode in change.updates:
        if inode is None:
            image.entries[directory].pop(name, None)
        else:
            image.entries[directory][name] = inode
    if change.mode is not None:
        image.modes[change.mode[0]] = change.mode[1]


def _without_aliases(image: Image) -> Iterator[Image]:
    """A directory under two names (half of a rename survived) is left one of them by the repair: either one."""
    names: dict[int, list[tuple[int, str]]] = {}
    for directory, entries in image.entries.items():
        for name, inode in entries.items():
            if inode in image.entries:
                names.setdefault(inode, []).append((directory, name))
    doubled = sorted(sorted(places) for places in names.values() if len(places) > 1)
    if not doubled:
        yield image
        return
    for keep in (0, -1):
        repaired = {directory: dict(inner) for directory, inner in image.entries.items()}
        for places in doubled:
            for place in places:
                if place != places[keep]:
                    del repaired[place[0]][place[1]]
        yield Image(repaired, image.contents, image.modes)
