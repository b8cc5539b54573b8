"""`holdfast run`: starts a training script as one node of a job."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def run(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a training script as one node of a job that survives the loss of nodes: torchrun's flags and more.

    Args:
        words: flags, the script, its arguments; `holdfast run --help` lists them.
    """
    from holdfast.run.launcher import run_launcher

    return run_launcher(words)
