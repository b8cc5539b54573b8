"""One of Holdfast's own commands as a process of the demo.

python -m examples.demo.process command ROOT serve …      does what      holdfast serve …
"""

from __future__ import annotations

import sys

from holdfast.cli import main as cli


def main(_root: str, *words: str) -> int:
    sys.argv = ["holdfast", *words]
    return cli.main()  # with the signals of a process of its own
