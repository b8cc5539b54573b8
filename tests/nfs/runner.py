"""Run a command where two independent NFS clients, as if on two machines, see one volume at /mnt/a and /mnt/b.

Clients and server are a User-Mode-Linux kernel's own: neither KVM nor modules of this machine's kernel are needed.
That kernel's root is this machine's, so a command finds every file at its absolute path. It needs root and
Debian's packages (`APT`). By hand:

    python -m tests.nfs.runner -v 4.2 COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

APT = "user-mode-linux nfs-kernel-server rpcbind e2fsprogs iproute2 kmod gcc libc6-dev"
VERSIONS = ("4.2", "3")
MEMORY = "1500M"  # of the guest

_PROGRAMS = ("linux.uml", "exportfs", "rpc.nfsd", "rpcbind", "mkfs.ext4", "ip", "modprobe", "cc")
_HERE = pathlib.Path(__file__).resolve().parent
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class BootError(RuntimeError):
    """The kernel died or could not mount; the message carries its last words."""


def missing() -> str:
    """Why real NFS clients cannot be run here, or ""."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "User-Mode-Linux runs on x86-64 Linux only"
    if os.geteuid() != 0:
        return "needs root"
    absent = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    return f"{', '.join(absent)} not installed: apt-get install {APT}" if absent else ""


def run_on_two_clients(
    version: str, command: Sequence[str], timeout_s: float, *, options: str = "", memory: str = MEMORY
) -> subprocess.CompletedProcess[str]:
    """Run `command` with both mounts ready; what it printed and its exit status.

    Args:
        version: NFS version, "4.2" or "3".
        timeout_s: of boot (about 5 s) and command together.
        options: further mount options, comma-separated; none is what most machines have.
        memory: the guest's, which this machine must have to spare.

    Raises:
        BootError: it never came to the command.
        subprocess.TimeoutExpired: everything was ended; `output` and `stderr` hold what had been printed.
    """
    assert version in VERSIONS, version
    with tempfile.TemporaryDirectory(prefix="holdfast-nfs-") as folder:
        job = pathlib.Path(folder)
        kernel = _boot(job, version, command, options, memory)
        try:
            kernel.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise subprocess.TimeoutExpired(
                list(command), timeout_s, _text(job / "stdout"), _text(job / "stderr")
            ) from error
        finally:
            _end_all_of(job)
            kernel.wait()
        status = _text(job / "status")
        if not status:
            tails = [_text(job / name)[-4000:] for name in ("setup.log", "kernel.log")]
            raise BootError("NFS {}: the command was never run\n{}\n{}".format(version, *tails))
        return subprocess.CompletedProcess(list(command), int(status), _text(job / "stdout"), _text(job / "stderr"))


def _memory_folder() -> str | None:
    """Where the kernel keeps its memory, as an unlinked file that it also executes from."""
    shm = "/dev/shm"
    usable = os.access(shm, os.W_OK) and not os.statvfs(shm).f_flag & os.ST_NOEXEC
    return shm if usable else None


def _boot(
    job: pathlib.Path, version: str, command: Sequence[str], options: str, memory: str
) -> subprocess.Popen[bytes]:
    for name in ("stdout", "stderr", "setup.log"):
        (job / name).touch()
    carried = ("HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG")
    lines = [f"export {name}={shlex.quote(os.environ[name])}" for name in carried if name in os.environ]
    lines.append(f"export PATH={shlex.quote(_PATH)}")
    lines += [f"version={version}", f"options={shlex.quote(options)}", f"directory={shlex.quote(os.getcwd())}"]
    lines.append(f"command=({shlex.join(command)})")
    (job / "job").write_text("\n".join(lines) + "\n")
    shim = job / "xstate.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, _HERE / "xstate.c"], check=True)
    arguments = ["linux.uml", f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
    arguments += [f"init={_HERE / 'init.sh'}", f"job={job}", "con=null", "con0=null,fd:1", "quiet"]
    with (job / "kernel.log").open("wb") as log:
        return subprocess.Popen(
            arguments,
            env={**os.environ, "PATH": _PATH, "LD_PRELOAD": str(shim), "TMPDIR": _memory_folder() or str(job)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end_all_of(job: pathlib.Path) -> None:
    """End each process of the kernel and see it gone: all carry the job's own directory on their command line."""
    while pids := [pid for pid, arguments in kernel_processes() if f"job={job}" in arguments]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [])
                finally:
                    os.close(handle)


def kernel_processes() -> list[tuple[int, list[str]]]:
    """The number and the arguments of every process of a User-Mode-Linux kernel on this machine."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if arguments[0].endswith("linux.uml"):
                    found.append((int(entry.name), arguments))
    return found


def _text(path: pathlib.Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nfs.runner", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-v", "--version", choices=VERSIONS, default="4.2")
    parser.add_argument("-o", "--options", default="", help="further mount options, comma-separated")
    parser.add_argument("-m", "--memory", default=MEMORY, metavar="SIZE", help="the guest's, such as 8000M")
    parser.add_argument("-t", "--timeout", type=float, default=300.0, metavar="S")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    call = parser.parse_args()
    if not call.command:
        parser.error("which command?")
    problem = missing()
    if problem:
        parser.exit(69, f"{problem}\n")
    done = run_on_two_clients(call.version, call.command, call.timeout, options=call.options, memory=call.memory)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
