"""`holdfast publish`."""

from __future__ import annotations

import json
import pathlib

import msgspec
import pytest

from holdfast import Channel, Term
from holdfast.cli.schema import Published
from tests.cli.conftest import Filled, Run


def test_publish_makes_the_channel_and_a_version_that_verifies(
    run: Run, tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    words = ("--metadata", "loss=0.25", "--metadata", "note=first try", "--metadata", "tags=[1, 2]")
    done = run("publish", tmp_path / "new", files, "--step", 7, *words, "--json")
    assert done.code == 0
    published = msgspec.json.decode(done.out, type=Published)
    assert (published.step, published.cycle, published.kind, published.starts_from) == (7, 1, "directory", None)
    assert pathlib.Path(published.path, "more", "w.bin").read_bytes() == b"more"
    assert run("verify", tmp_path / "new").code == 0
    shown = run("show", tmp_path / "new", "--json").data
    assert shown["metadata"] == {"loss": 0.25, "note": "first try", "tags": [1, 2]}


def test_versions_published_one_by_one_form_one_lineage(run: Run, tmp_path: pathlib.Path, files: pathlib.Path) -> None:
    for step in (1, 2, 2, 5):
        assert run("publish", tmp_path / "c", files, "--step", step).code == 0
    rows = run("ls", tmp_path / "c", "--json").data["versions"]
    assert [row["step"] for row in rows] == [5, 2, 2, 1]
    assert all(row["in_lineage"] for row in rows)


def test_a_step_below_the_start_is_told_before_the_channel_is_claimed(
    run: Run, filled: Filled, files: pathlib.Path
) -> None:
    done = run("publish", filled.path, files, "--step", 3)
    assert done.code == 2
    assert done.err.startswith("error: step 3 is below step 4 of c000001-s00000004")
    assert filled.channel.observer().cycles() == (1,)


def test_a_run_that_starts_anew_leaves_the_older_versions_outside(
    run: Run, filled: Filled, files: pathlib.Path
) -> None:
    assert run("publish", filled.path, files, "--step", 1, "--resume-from", "none").code == 0
    rows = run("ls", filled.path, "--json").data["versions"]
    assert [(row["cycle"], row["in_lineage"]) for row in rows] == [(2, True), *[(1, False)] * 4]


def test_a_run_goes_on_from_an_older_step(run: Run, filled: Filled, files: pathlib.Path) -> None:
    done = run("publish", filled.path, files, "--step", 3, "--resume-from", 2, "--json")
    assert done.data["starts_from"] == filled.versions[1]


def test_what_to_keep_makes_it_sweep_too(run: Run, filled: Filled, files: pathlib.Path) -> None:
    done = run("publish", filled.path, files, "--step", 5, "--keep-recent", 2, "--json")
    assert done.data["removed"] == filled.versions[:3]


def test_a_living_publisher_is_a_conflict_unless_taken_over(
    run: Run, tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    channel = Channel(tmp_path / "c", lease_s=1.0)
    with channel.publisher(term=Term(job="train", round=0, nonce="0" * 16), sweep=False):
        done = run("publish", tmp_path / "c", files, "--step", 1, "--lease", 1, "--json")
        assert (done.code, done.data["error"]["code"]) == (4, "publisher_alive")
        done = run("publish", tmp_path / "c", files, "--step", 1, "--take-over", "--json")
        assert (done.code, done.data["replaced_job"]) == (0, "train")
        assert done.err == "cycle 2 replaces job train, which cannot publish here any more\n"


def test_a_higher_round_of_the_same_job_replaces_the_lower(
    run: Run, tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    assert run("publish", tmp_path / "c", files, "--step", 1, "--job", "train", "--round", 3).code == 0
    assert run("publish", tmp_path / "c", files, "--step", 2, "--job", "train", "--round", 4).code == 0
    done = run("publish", tmp_path / "c", files, "--step", 3, "--job", "train", "--round", 2, "--json")
    assert (done.code, done.data["error"]["code"]) == (4, "superseded")


def test_a_dead_publisher_is_waited_for_and_then_it_is_later(run: Run, filled: Filled, files: pathlib.Path) -> None:
    filled.plant("cycles/000001.beat", b'{"format":1,"cycle":1,"beat":3,"closed":false}\n')
    done = run("publish", filled.path, files, "--step", 5, "--wait", 0.1, "--json")
    assert (done.code, done.data["error"]["code"]) == (75, "claim_timed_out")


def test_the_kind_is_what_the_files_look_like(run: Run, tmp_path: pathlib.Path, files: pathlib.Path) -> None:
    (files / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": "org/base"}))
    done = run("publish", tmp_path / "c", files, "--step", 1, "--json")
    assert done.data["kind"] == "adapter"
    assert run("show", tmp_path / "c", "--json").data["requires"] == {"base_model": "org/base", "rank": 8}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--step", 1, "--kind", "adapter"), "wrong_kind"),
        (("--step", 1, "--kind", "full"), "wrong_kind"),
        (("--step", 1, "--metadata", "nothing"), "usage"),
        (("--step", 1, "--metadata", "=1"), "usage"),
        (("--step", 1, "--kind", "picture"), "usage"),
        (("--step", "one"), "usage"),
        ((), "usage"),
        (("--step", -1), "bad_step"),
        (("--step", 1, "--keep-recent", 0), "bad_retention"),
        (("--step", 1, "--resume-from", "nothing"), "no_such_version"),
    ],
)
def test_wrong_calls_change_nothing(
    run: Run, filled: Filled, files: pathlib.Path, words: tuple[object, ...], code: str
) -> None:
    done = run("publish", filled.path, files, *words, "--json")
    assert (done.code, done.data["error"]["code"]) == (2, code)
    assert filled.channel.observer().cycles() == (1,)


def test_a_directory_that_cannot_be_published_changes_nothing(
    run: Run, filled: Filled, tmp_path: pathlib.Path, files: pathlib.Path
) -> None:
    (files / "link").symlink_to("w.bin")
    assert run("publish", filled.path, files, "--step", 9, "--json").data["error"]["code"] == "not_a_file"
    (tmp_path / "nothing").mkdir()
    assert run("publish", filled.path, tmp_path / "nothing", "--step", 9).code == 2
    assert run("publish", filled.path, tmp_path / "absent", "--step", 9).code == 2
    assert filled.channel.observer().cycles() == (1,)
