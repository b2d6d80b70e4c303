"""The command line: what each command prints, and the code it ends with."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from chest import Chest, DurableQueue, cli, samples

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A chest with keys of several kinds, in an order that is not sorted."""
    where = str(tmp_path / "mine")
    with Chest(where) as chest:
        chest["x"] = [1, 2, 3]
        chest["a", 1] = "one"
        chest[7] = "seven"
        chest["day", "2013-01-02"] = 2
        chest["day", "2013-01-01"] = 1
    return where


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = int(exit.code or 0)
    return code, *capsys.readouterr()


def python(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chest", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


def state(path: str) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.join(folder, name)] = file.read()
    return found


def damage(path: str) -> str:
    """Turn a byte of the value of 'x'; the path of its file."""
    with Chest(path, readonly=True) as chest:
        name = chest.key_to_filename("x")
    with open(name, "r+b") as file:
        file.seek(4)
        byte = file.read(1)
        file.seek(4)
        file.write(bytes([byte[0] ^ 255]))
    return name


def test_ls_lists_keys_in_the_order_they_were_set(capsys: Capture, path: str) -> None:
    code, out, err = run(capsys, "ls", path)
    assert (code, err) == (0, "")
    expected = "'x'\n('a', 1)\n7\n('day', '2013-01-02')\n('day', '2013-01-01')\n"
    assert out == expected


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("x", ["'x'"]),
        ("'x'", ["'x'"]),
        ("7", ["7"]),
        ("day/2013-01-01", ["('day', '2013-01-01')"]),
        ("('day',)", ["('day', '2013-01-02')", "('day', '2013-01-01')"]),
        ("('a', 1)", ["('a', 1)"]),
        ("nothing", []),
    ],
)
def test_ls_takes_a_prefix_as_text_or_as_a_tuple(
    capsys: Capture, path: str, prefix: str, expected: list[str]
) -> None:
    code, out, _ = run(capsys, "ls", path, prefix)
    assert (code, out.splitlines()) == (0, expected)


def test_ls_stops_at_the_limit(capsys: Capture, path: str) -> None:
    assert run(capsys, "ls", path, "--limit", "2")[1] == "'x'\n('a', 1)\n"
    assert run(capsys, "ls", path, "--limit", "0")[1] == ""
    assert run(capsys, "ls", path, "--limit", "-1")[0] == 2


def test_ls_long_shows_formats_sizes_and_files(capsys: Capture, path: str) -> None:
    _, out, _ = run(capsys, "ls", path, "--long")
    row = next(line for line in out.splitlines() if "('a', 1)" in line)
    assert "pickle" in row
    with Chest(path, readonly=True) as chest:
        assert os.path.relpath(chest.key_to_filename(("a", 1)), path) in row


def test_ls_json_is_one_object_a_line(capsys: Capture, path: str) -> None:
    _, out, _ = run(capsys, "ls", path, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["key"] for row in rows][:3] == ["'x'", "('a', 1)", "7"]
    assert all(row["stored_nbytes"] > 0 for row in rows)
    assert [row["birth"] for row in rows] == sorted(row["birth"] for row in rows)


@pytest.mark.parametrize("shape", [(), ("--long",), ("--json",)])
def test_ls_never_reads_values(
    capsys: Capture, path: str, shape: tuple[str, ...]
) -> None:
    damage(path)
    code, out, err = run(capsys, "ls", path, *shape)
    assert (code, err) == (0, "")
    assert "'x'" in out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "[1, 2, 3]"),
        ("'x'", "[1, 2, 3]"),
        ("7", "'seven'"),
        ("7.0", "'seven'"),
        ("('a', 1)", "'one'"),
    ],
)
def test_get_takes_a_literal_or_plain_text(
    capsys: Capture, path: str, text: str, expected: str
) -> None:
    assert run(capsys, "get", path, text) == (0, expected + "\n", "")


def test_get_falls_back_to_text_that_looks_like_a_literal(
    capsys: Capture, path: str
) -> None:
    with Chest(path) as chest:
        chest["8"] = "text"
        chest["[1]"] = "brackets"
    assert run(capsys, "get", path, "8")[1] == "'text'\n"
    assert run(capsys, "get", path, "[1]")[1] == "'brackets'\n"


def test_get_of_a_missing_key_names_what_was_perhaps_meant(
    capsys: Capture, path: str
) -> None:
    code, out, err = run(capsys, "get", path, "day/2013-01-03")
    assert (code, out) == (1, "")
    assert err.startswith("chest: no key 'day/2013-01-03'")
    assert err.count("\n") == 1
    assert "('day', '2013-01-0" in err


def test_get_output_is_a_pickle_that_needs_no_chest(
    capsys: Capture, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "value.pkl"
    assert run(capsys, "get", path, "x", "--output", str(file)) == (0, "", "")
    assert pickle.loads(file.read_bytes()) == [1, 2, 3]


def test_get_output_of_a_value_in_the_log_or_in_a_pack_is_its_pickle_alone(
    capsys: Capture, tmp_path: Path
) -> None:
    file, where = tmp_path / "value.pkl", str(tmp_path / "c")
    with Chest(where) as c:
        c["in the log"] = {"a": 1}
        c.sync()
        assert run(capsys, "get", where, "in the log", "--output", str(file))[0] == 0
        assert pickle.loads(file.read_bytes()) == {"a": 1}
        c.update((n, [n]) for n in range(100))
    assert run(capsys, "get", where, "7", "--output", str(file)) == (0, "", "")
    assert pickle.loads(file.read_bytes()) == [7]
    assert file.stat().st_size < 1000


def test_get_output_does_not_empty_the_file_it_reads(
    capsys: Capture, path: str
) -> None:
    file = os.path.join(path, "x")
    code, _, err = run(capsys, "get", path, "x", "--output", file)
    assert (code, err.count("\n")) == (2, 1)
    assert run(capsys, "get", path, "x")[1] == "[1, 2, 3]\n"


def test_get_output_goes_to_a_pipe(
    capfdbinary: pytest.CaptureFixture[bytes], path: str
) -> None:
    assert cli.main(["get", path, "x", "--output", "-"]) == 0
    assert pickle.loads(capfdbinary.readouterr().out) == [1, 2, 3]


def test_get_output_of_a_value_that_is_a_folder_says_where_it_is(
    capsys: Capture, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Chest, "key_to_filename", lambda chest, key: str(tmp_path))
    code, _, err = run(capsys, "get", path, "x", "--output", str(tmp_path / "out"))
    assert code == 2
    assert f"copy it from {tmp_path}" in err
    assert not (tmp_path / "out").exists()


def test_get_shortens_a_long_value_unless_asked_not_to(
    capsys: Capture, path: str
) -> None:
    with Chest(path) as chest:
        chest["long"] = "y" * 100_000
    assert len(run(capsys, "get", path, "long")[1]) < 5000
    assert len(run(capsys, "get", path, "long", "--repr")[1]) == 100_003


class Hostile:
    """A value whose repr would clear the screen, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __repr__(self) -> str:
        if self.error is not None:
            raise self.error
        return "\x1b[2Jhidden\x9b1m\rover\ttab\nline"


def test_printed_values_cannot_drive_the_terminal() -> None:
    shown = cli._shown(Hostile(), whole=True)
    assert shown == "\\x1b[2Jhidden\\x9b1m\\rover\ttab\nline"


def test_value_that_cannot_be_shown_is_described() -> None:
    shown = cli._shown(Hostile(OSError("no")), whole=True)
    assert shown == "<Hostile whose repr raises OSError>"


def test_info_counts_keys_and_names_the_format(capsys: Capture, path: str) -> None:
    code, out, err = run(capsys, "info", path)
    assert (code, err) == (0, "")
    facts = dict(line.split(None, 1) for line in out.splitlines() if " " in line)
    assert facts["keys"].strip() == "5"
    assert path in out
    assert "format version" in out


def test_verify_of_a_whole_chest_is_fine(capsys: Capture, path: str) -> None:
    code, out, err = run(capsys, "verify", path, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("5 values")


def test_verify_names_key_and_file_of_a_damaged_value(
    capsys: Capture, path: str
) -> None:
    name = damage(path)
    code, out, _ = run(capsys, "verify", path, "--quiet")
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "'x'" in out
    assert name in out


def test_verify_shows_progress_on_standard_error(capsys: Capture, path: str) -> None:
    code, out, err = run(capsys, "verify", path)
    assert code == 0
    assert "%" in err
    assert "%" not in out


def test_get_of_a_damaged_value_is_a_problem_in_one_line(
    capsys: Capture, path: str
) -> None:
    damage(path)
    code, out, err = run(capsys, "get", path, "x")
    assert (code, out) == (1, "")
    assert err.startswith("chest: ")
    assert err.count("\n") == 1
    assert "'x'" in err


def test_damaged_manifest_is_a_problem_in_one_line(capsys: Capture, path: str) -> None:
    with open(os.path.join(path, ".keys"), "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damaged")
    for command in ("info", "ls", "verify"):
        code, _, err = run(capsys, command, path)
        assert code == 1
        assert err.count("\n") == 1


def test_compact_keeps_every_key_and_gives_back_room(
    capsys: Capture, path: str
) -> None:
    with Chest(path, publish="each") as chest:
        for number in range(100):
            chest["x"] = [number]
    size = os.path.getsize(os.path.join(path, ".keys"))
    code, out, err = run(capsys, "compact", path)
    assert (code, err) == (0, "")
    assert "->" in out
    assert os.path.getsize(os.path.join(path, ".keys")) < size
    with Chest(path, readonly=True) as chest:
        assert chest["x"] == [99]
        assert len(chest) == 5


@pytest.mark.parametrize(
    "command", [("info",), ("ls",), ("ls", "--long"), ("verify",), ("get", "x")]
)
def test_reading_commands_change_nothing(
    capsys: Capture, path: str, command: tuple[str, ...]
) -> None:
    before = state(path)
    assert run(capsys, command[0], path, *command[1:])[0] == 0
    assert state(path) == before


def test_queues_and_chests_below_are_told_from_the_chests_own_files(
    capsys: Capture, path: str
) -> None:
    files = run(capsys, "info", path)[1].splitlines()[-5:]
    with DurableQueue(path, name="jobs") as queue, Chest({"y": 1}, f"{path}/below"):
        queue.put(b"x" * 100_000)
    out = run(capsys, "info", path)[1].splitlines()
    assert [line.split() for line in out[-6:-1]] == [line.split() for line in files]
    assert out[-1].split() == ["queues", "'jobs'"]


def test_what_holds_queues_alone_is_no_chest_and_says_so(
    capsys: Capture, tmp_path: Path
) -> None:
    DurableQueue(tmp_path / "q", name="jobs").close()
    code, out, err = run(capsys, "ls", str(tmp_path / "q"))
    assert (code, out) == (2, "")
    assert "'jobs'" in err
    assert "DurableQueue" in err


def test_an_address_is_no_folder_and_says_so(capsys: Capture) -> None:
    code, out, err = run(capsys, "ls", "s3://bucket/prefix")
    assert (code, out) == (2, "")
    assert "Chest('s3://bucket/prefix')" in err


@pytest.mark.parametrize("command", ["info", "ls", "verify", "compact"])
@pytest.mark.parametrize("kind", ["missing", "file", "folder"])
def test_what_is_no_chest_is_refused_and_not_made_one(
    capsys: Capture, tmp_path: Path, command: str, kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("hello")
    elif kind == "folder":
        place.mkdir(mode=0o700)
    code, out, err = run(capsys, command, str(place))
    assert (code, out) == (2, "")
    assert str(place) in err
    assert err.count("\n") == 1
    assert place.exists() == (kind != "missing")
    assert kind != "folder" or list(place.iterdir()) == []


def test_untrusted_folder_is_refused_until_it_is_trusted(
    capsys: Capture, path: str
) -> None:
    os.chmod(path, 0o777)
    code, out, err = run(capsys, "get", path, "x")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert run(capsys, "get", path, "x", "--trust", "any")[1] == "[1, 2, 3]\n"


@pytest.mark.parametrize(
    "arguments", [("--debug", "info", "nowhere"), ("info", "nowhere", "--debug")]
)
def test_debug_shows_where_an_error_came_from(
    capsys: Capture, arguments: tuple[str, ...]
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" in err
    assert "Traceback" not in run(capsys, "info", "nowhere")[2]


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("get", "somewhere"), ("demo", "--seed", "x")]
)
def test_wrong_usage_is_explained(capsys: Capture, arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage: chest" in err


def test_a_limit_that_is_no_number_is_named_in_words(capsys: Capture) -> None:
    err = run(capsys, "ls", "somewhere", "--limit", "x")[2]
    assert "'x' is no number of keys" in err


def test_version_and_help_are_fine(capsys: Capture) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "chest")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("demo", "info", "ls", "get", "verify", "compact"):
        assert command in out


@pytest.fixture
def no_flights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "source", samples.Made)


@pytest.mark.usefixtures("no_flights")
def test_demo_prints_a_table_and_what_was_seen(capsys: Capture) -> None:
    code, out, err = run(capsys, "demo", "--budget", "1MB", "--size", "4MB", "--quiet")
    assert (code, err) == (0, "")
    assert "You have just seen" in out


@pytest.mark.usefixtures("no_flights")
def test_demo_keeps_20_budgets_unless_told_otherwise(
    capsys: Capture, tmp_path: Path
) -> None:
    path = str(tmp_path / "kept")
    run(capsys, "demo", "--budget", "1MB", "--quiet", "--path", path)
    with Chest(path, readonly=True) as chest:
        assert 20_000_000 <= chest.stats().stored_nbytes < 22_000_000


@pytest.mark.usefixtures("no_flights")
def test_demo_says_in_its_exit_code_that_values_differ(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "same", lambda value, source: False)
    code, out, _ = run(capsys, "demo", "--budget", "1MB", "--size", "2MB", "--quiet")
    assert code == 1
    assert "did not come back" in out


@pytest.mark.parametrize("size", ["lots", "-1", "nan"])
def test_demo_refuses_sizes_that_are_none(capsys: Capture, size: str) -> None:
    code, out, err = run(capsys, "demo", f"--size={size}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_python_m_chest_is_the_same_command(path: str) -> None:
    process = python("get", path, "('a', 1)", stdout=subprocess.PIPE)
    assert process.communicate() == (b"'one'\n", b"")
    assert process.returncode == 0


def test_reader_of_the_output_may_go_away_silently(path: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = python("ls", path, stdout=writer)
    os.close(writer)
    assert process.communicate() == (None, b"")
    assert process.returncode == cli.READER_GONE


def test_a_chest_that_lost_its_manifest_is_told_of_recover(
    capsys: Capture, path: str
) -> None:
    os.unlink(os.path.join(path, ".keys"))
    before = state(path)
    for command in ("info", "ls", "verify", "compact"):
        code, out, error = run(capsys, command, path)
        assert (code, out) == (1, "")
        assert f"chest recover {path}" in error
    assert state(path) == before
    assert run(capsys, "recover", path, "--quiet")[0] == 0
    assert run(capsys, "verify", path, "--quiet")[0] == 0


@pytest.mark.parametrize("command", ["info", "recover"])
def test_a_path_that_is_no_folder_is_named(
    capsys: Capture, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, what in (
        (str(tmp_path / "none"), "none does not exist"),
        ("", "'' does not exist"),
        (str(file), "is not a chest: a chest is a folder"),
        (str(file / "below"), "below: Not a directory"),
    ):
        code, _, error = run(capsys, command, path)
        assert code == 2
        assert error.endswith(f"{what}\n")


def test_what_the_system_refuses_is_said_without_numbers(
    capsys: Capture, path: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "none" / "x")
    code, _, error = run(capsys, "get", path, "x", "--output", output)
    assert (code, error) == (2, f"chest: {output}: No such file or directory\n")


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors as shells do")
def test_a_closed_output_is_no_error(path: str) -> None:
    command = python("info", path, preexec_fn=lambda: os.close(1))
    _, error = command.communicate()
    assert (command.returncode, error) == (0, b"")
