"""`holdfast run`: starts a training script as one node of a job."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

from cyclopts import Parameter


def run(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a training script as one node of a job that survives the loss of nodes: torchrun's flags and more.

    Args:
        words: flags, the script, its arguments; `holdfast run --help` lists them.
    """
    # Importing torch takes seconds, and what it does with exceptions is its own affair: a SIGTERM that became one there
    # was lost. Until the rendezvous has handlers of its own there is nothing to leave in order.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from holdfast.run.launcher import run_launcher

    return run_launcher(words)
