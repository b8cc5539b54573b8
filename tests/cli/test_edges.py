"""What every command does at the edges: errors, hostile channels, rights, signals, pipes, documentation."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import msgspec
import pytest

import holdfast
from holdfast.channel.doctor import Diagnosis
from holdfast.channel.probes import Probe
from holdfast.channel.status import Status
from holdfast.channel.visibility import Visibility
from holdfast.cli import schema
from holdfast.cli.main import COMMANDS, OWN_HELP
from holdfast.cli.output import clean, exit_code
from holdfast.core.records import ConsumerRecord, encode
from tests.cli.conftest import Filled, Run, fill, without_rights

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVIL = "[bold red]x[/] \x1b[2J\x9b31m\u202egpj.exe\r\n\u2028end"
ON_A_CHANNEL = [("ls",), ("show",), ("verify",), ("status",), ("pin", "newest"), ("unpin", "newest"), ("sweep",)]


def _process(*words: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "holdfast.cli.main", *map(str, words)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("command", ON_A_CHANNEL, ids=lambda words: words[0])
def test_where_no_channel_is(run: Run, tmp_path: pathlib.Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    for place in (tmp_path / "absent", tmp_path):
        done = run(name, place, *rest)
        assert (done.code, done.out) == (75, "")
        assert done.err.splitlines()[0] == f"error: {place}: there is no channel here (yet)"
        assert done.err.splitlines()[1].startswith("hint: ")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "data.csv").touch()
    done = run(name, tmp_path / "theirs", *rest, "--json")
    assert (done.code, done.data["error"]["code"]) == (2, "not_a_channel")


@pytest.mark.parametrize("command", ON_A_CHANNEL, ids=lambda words: words[0])
def test_what_is_newer_or_broken_is_told_in_one_line(run: Run, filled: Filled, command: tuple[str, ...]) -> None:
    name, *rest = command
    for text, code in ((b'{"format":9}', "newer_format"), (b"no json", "not_a_channel"), (b"{}", "not_a_channel")):
        filled.plant("channel.json", text)
        done = run(name, filled.path, *rest, "--json")
        assert (done.code, done.data["error"]["code"]) == (2, code)
        assert run(name, filled.path, *rest).err.startswith("error: ")


def test_a_file_is_no_channel(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    done = run("ls", tmp_path / "file")
    assert done.code in (2, 75)
    assert done.err.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lss",), 'Unknown command "lss". Did you mean "ls"?'),
        (("ls",), "requires an argument"),
        (("ls", "c", "--jason"), "Unknown option: --jason"),
        (("sweep", "c", "--keep-recent", "many"), "unable to convert"),
        (("ls", "c", "d"), "d"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_hint(run: Run, words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert second.startswith("hint: see `holdfast")
    assert run(*words, "--json").data["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (holdfast.UsageError("x", code="c"), 2),
        (holdfast.IntegrityError("x", code="c"), 3),
        (holdfast.ConflictError("x", code="c"), 4),
        (holdfast.FencedError("x", code="c"), 4),
        (holdfast.RewoundError("x", code="c"), 4),
        (holdfast.UnavailableError("x", code="errno_eio"), 75),
        (holdfast.NotVisibleError("x", code="errno_enoent"), 75),
        (holdfast.TimedOutError("x", code="c"), 75),
        (holdfast.UnavailableError("x", code="errno_erofs"), 1),
        (holdfast.OutcomeUnknownError("x", code="c"), 1),
        (holdfast.HoldfastError("x", code="c"), 1),
    ],
)
def test_exit_codes_follow_what_the_caller_should_do(error: holdfast.HoldfastError, code: int) -> None:
    assert exit_code(error) == code


# Hostile channels


def _poison(filled: Filled) -> None:
    """Everything that a channel can say, said by somebody who wants to reach the reader's terminal."""
    party = filled.channel.party()
    record = ConsumerRecord(
        beat=1, holds=(filled.versions[0], EVIL[:20]), refused={filled.versions[3]: "X"}, party=party
    )
    text = encode(record).replace(b'"X"', json.dumps(EVIL).encode())
    filled.plant("consumers/evil.000001-00000000.json", text)
    filled.plant("sweepers/000001-0a1b2c3d.json", json.dumps(
        {"format": 1, "beat": 1, "cycle": 1, "tombstones": [filled.versions[1], EVIL], "expired": [EVIL],
         "seen": [EVIL], "reasons": {filled.versions[1]: EVIL}, "retention": {"keep_recent": 0, EVIL: EVIL},
         "party": {"host": EVIL, "device": "d", "bound_s": 0}}
    ).encode())  # fmt: skip
    filled.plant("broadcasts/c000001/LOADED_STEP\x1b[31m", b"2")
    filled.plant("versions/c000001-s00000002-0\x1b[31m/manifest.json", b"{}")
    filled.plant(f"pins/{EVIL.replace('/', '')}", b"")
    claim = json.loads((filled.path / "cycles" / "000001.json").read_bytes())
    claim["term"]["job"] = EVIL
    filled.plant("cycles/000001.json", json.dumps(claim).encode())


def _harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("command", [*ON_A_CHANNEL[:4], ("sweep", "--dry-run")], ids=lambda words: words[0])
def test_nothing_in_a_channel_reaches_the_terminal_raw(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    poisoned = fill(tmp_path / "c", 1, 2, 3, 4, **{EVIL: EVIL, "n": {"deep": ["[blink]", "\x07"]}})
    _poison(poisoned)
    name, *rest = command
    done = run(name, poisoned.path, *rest)
    assert _harmless(done.out)
    assert _harmless(done.err)
    as_json = run(name, poisoned.path, *rest, "--json")
    assert as_json.out.isascii()
    assert "\x1b" not in as_json.out
    if name in ("show", "status"):
        assert "[bold red]x[/] \\x1b[2J\\x9b31m\\u202egpj.exe\\r\\n\\u2028end" in done.out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    coloured = run(name, poisoned.path, *rest).out
    assert _harmless(re.sub(r"\x1b\[[0-9;]*m", "", coloured)), "colours are our own, and nothing else is there"


def test_no_color_is_respected(run: Run, filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.plant("consumers/odd.000001-00000000.json", b"odd")
    monkeypatch.setenv("FORCE_COLOR", "1")
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert colour.search(run("status", filled.path).out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(run("status", filled.path).out)


def test_errors_that_quote_a_channel_are_harmless_too(run: Run, tmp_path: pathlib.Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "a\x1b[31m\nerror: forged").touch()
    done = run("ls", theirs)
    assert _harmless(done.err)
    assert done.err.count("\n") == 2


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("a\x1bb", "a\\x1bb"), ("\u202eabc", "\\u202eabc"), ("\udc80", "\\udc80"), ("[b]", "[b]"), ("é…", "é…"), (5, "5")],
)
def test_clean(raw: object, shown: str) -> None:
    assert clean(raw) == shown


def test_what_is_too_long_for_a_cell_is_cut() -> None:
    assert clean("x" * 1000, limit=10) == "x" * 9 + "…"


# Rights


@pytest.mark.parametrize("command", ON_A_CHANNEL[:4], ids=lambda words: words[0])
def test_looking_needs_no_right_to_write(run: Run, read_only: Filled, command: tuple[str, ...]) -> None:
    name, *rest = command
    wanted = run(name, read_only.path, *rest, "--json").data
    with without_rights():
        done = run(name, read_only.path, *rest, "--json")
    assert done.code == 0
    assert done.data.keys() == wanted.keys()


@pytest.mark.parametrize(
    "command", [("pin", "newest"), ("publish", "D", "--step", "9"), ("sweep", "--keep-recent", "1")]
)
def test_changing_without_the_right_fails_and_says_so(
    run: Run, read_only: Filled, files: pathlib.Path, command: tuple[str, ...]
) -> None:
    for path in [read_only.path.parent, *read_only.path.parent.rglob("*")]:
        if path.name in ("consumers", "sweepers"):
            path.chmod(0o555)
    source = read_only.path.parent / "files"
    files.rename(source)
    source.chmod(0o755)
    name, *rest = [str(source) if word == "D" else word for word in command]
    run(name, read_only.path.parent / "other", *rest)  # imports what it needs while it may
    with without_rights():
        done = run(name, read_only.path, *rest, "--json")
    assert done.code == 1, done
    assert done.data["error"]["code"] == "errno_eacces"


# Processes


def test_the_first_page_is_quick_and_light() -> None:
    script = (
        "import sys; from holdfast.cli.main import main; code = main(['--help']); "
        "print('loaded', sorted(n for n in sys.modules if n.startswith(('torch', 'numpy', 'holdfast.channel'))), code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded [] 0"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(OWN_HELP)))
def test_every_command_explains_itself(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert f"Usage: holdfast {command}" in done.out
    assert "--json" in done.out


def test_run_explains_itself_as_torchrun_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run("run", "--help")
    assert not left.value.code
    said = capsys.readouterr().out
    assert "usage: holdfast run" in said
    assert "--spares" in said


def test_no_command_loads_torch(filled: Filled, files: pathlib.Path) -> None:
    script = (
        "import sys; from holdfast.cli.main import main; codes = [main(words.split()) for words in sys.argv[1:]]; "
        "print('loaded', sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)), codes)"
    )
    calls = [f"{name} {filled.path}" for name in ("ls", "show", "verify", "status")]
    calls += [f"publish {filled.path} {files} --step 9", f"sweep {filled.path} --keep-recent 2"]
    done = subprocess.run(
        [sys.executable, "-c", script, *calls], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded [] [0, 0, 0, 0, 0, 0]"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_quietly(filled: Filled, number: int, code: int) -> None:
    with _process("status", filled.path, "--watch", "--every", 0.05, "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["newest"] == filled.versions[-1]
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, "")


def test_a_reader_that_leaves_ends_it_quietly(filled: Filled) -> None:
    with _process("status", filled.path, "--watch", "--every", 0.01, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
        code = process.wait(timeout=60)
    assert (code, told) == (141, "")


def test_the_version_is_told(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out.strip()) == (0, holdfast.__version__)


def test_completion_can_be_installed(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "completion"
    command = [
        sys.executable,
        "-m",
        "holdfast.cli.main",
        "--install-completion",
        "--shell",
        "bash",
        "--output",
        str(script),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    assert all(name in script.read_text() for name in COMMANDS)


# Documentation


@pytest.mark.parametrize(
    "kind",
    [
        *(kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)),
        *(Status, Diagnosis, Probe, Visibility),
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_field_that_json_prints_is_documented(kind: type[msgspec.Struct]) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in kind.__struct_fields__ if f"`{name}`" not in text] == []


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"## {name}" not in text and f", {name}\n" not in text] == []
