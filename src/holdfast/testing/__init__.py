"""Stand-ins for the parts of the world that fail, for Holdfast's tests and for yours.

`SimulatedDisk` is a file system in memory that loses power: it yields every state that a real one may come back
with. `FaultyOps` makes chosen calls fail, lose their answer, or lie. Both are given to `PosixStorage(root, ops=…)`.
"""

from __future__ import annotations

from holdfast.testing.disk import Operation, PowerCut, SimulatedDisk
from holdfast.testing.faults import FaultyOps

__all__ = ["FaultyOps", "Operation", "PowerCut", "SimulatedDisk"]
