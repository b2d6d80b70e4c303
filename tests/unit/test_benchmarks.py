"""Each workload once, tiny; each installed rival once; the arithmetic of the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.plan import FULL, TINY, Case, Figures, Goal, Rival, Workload
from benchmarks.rivals import RIVALS
from benchmarks.runner import Outcome, in_a_process, run
from benchmarks.workloads import ABOUT, WORKLOADS

NEED_NOTHING = ["chest", "dict", "raw", "np.save", "pickle", "log"]
ONLY_ARRAYS = ["raw", "np.save", "zarr"]
ONLY_QUEUES = ["litequeue", "persist-queue"]
NO_DELETE = [*ONLY_ARRAYS, *ONLY_QUEUES, "pickle", "joblib"]


def nothing(case: Case) -> Figures:
    raise ArithmeticError(case.rival.name)


def example(**settings: object) -> Workload:
    return Workload("example", "about", nothing, **settings)  # type: ignore[arg-type]


def outcome(rival: str, *times: float) -> Outcome:
    return Outcome("example", rival, [{"time [ms]": time} for time in times])


def test_every_listed_workload_exists_and_the_other_way_round() -> None:
    assert list(WORKLOADS) == list(ABOUT)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_measures_chest_and_the_limits(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    for module in workload.needs:
        pytest.importorskip(module)

    ended = run(workload, TINY, tmp_path, repeat=1, rivals=NEED_NOTHING, fair=False)

    assert "chest" in [each.rival for each in ended]
    assert [each.failed + each.skipped for each in ended] == [""] * len(ended)
    for each in ended:
        assert all(figure >= 0 for figure in each.samples[0].values())
    for goal in workload.goals:
        assert goal.figure in ended[0].samples[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_rivals_baselines_and_goals_name_rivals_that_exist(name: str) -> None:
    workload = WORKLOADS[name]
    against = {goal.against for goal in workload.goals} - {None}

    assert set(workload.rivals) <= set(RIVALS)
    assert set(workload.baselines) <= set(workload.rivals)
    assert against <= set(workload.baselines)


# Rivals may warn of what they like; they are not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIVALS)
def test_rival_gives_back_what_it_was_given(name: str, tmp_path: Path) -> None:
    if absence := RIVALS[name].absence():
        pytest.skip(absence)
    value = np.arange(1000.0) if name in ONLY_ARRAYS else "x" * 100
    store = RIVALS[name](tmp_path, 1 << 20)
    store.set("k1", value)
    store.flush()
    if RIVALS[name].reopens:
        store.close()
        store = RIVALS[name](tmp_path, 1 << 20)

    assert np.array_equal(store.get("k1"), value)
    if name not in NO_DELETE:
        _forgets(store)
    store.close()


def _forgets(store: Rival) -> None:
    assert store.contains("k1")
    assert store.length() == 1

    store.delete("k1")
    store.flush()

    assert not store.contains("k1")
    assert store.length() == 0
    with pytest.raises(KeyError):
        store.get("k1")


def test_absent_rival_is_named_as_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RIVALS["lmdb"], "needs", ("no_such_module",))
    workload = WORKLOADS["lookups"]

    ended = run(workload, TINY, tmp_path, repeat=1, rivals=["lmdb"], fair=False)

    text = report.table(workload, report.rows(workload, ended, TINY), ended)
    assert "lmdb skipped: no_such_module is not installed" in text


def test_rival_that_raises_is_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = example(rivals=("dict", "log"))
    monkeypatch.setitem(WORKLOADS, "example", workload)

    ended = run(workload, TINY, tmp_path, repeat=2, fair=False)

    assert [each.failed for each in ended] == [
        "ArithmeticError: dict",
        "ArithmeticError: log",
    ]
    text = report.table(workload, report.rows(workload, ended, TINY), ended)
    assert "log FAILED: ArithmeticError: log" in text


def never_ends() -> Figures:
    threading.Event().wait()
    return {}


def fails() -> Figures:
    raise ArithmeticError


def dies() -> Figures:
    os._exit(3)


@pytest.mark.parametrize(
    ("step", "limit", "told"),
    [
        (never_ends, 0.1, None),
        (fails, None, (None, "ArithmeticError: ")),
        (dies, None, (None, "its process ended with 3")),
        (dict, None, ({}, "")),
    ],
)
def test_whoever_takes_too_long_is_stopped_and_others_are_heard(
    step: Callable[[], Figures], limit: float | None, told: object
) -> None:
    assert in_a_process(step, (), limit) == told


def test_a_rival_that_was_stopped_is_named_and_is_no_failure(tmp_path: Path) -> None:
    ended = [outcome("chest", 1.0), outcome("raw")]
    ended[1].samples, ended[1].stopped = [], "not finished in 5 s"
    assert "raw not finished in 5 s" in report.table(example(), [], ended)

    for each in ended:
        each.workload = "rows_x"
    workload = replace(example(), name="rows_x")
    found = report.rows(workload, ended, TINY)
    found.append(replace(found[0], workload="rows_y", rival="raw"))
    file = tmp_path / "run.json"
    file.write_text(report.as_json(found, ended, TINY, tmp_path), encoding="utf-8")
    assert '"raw","not finished in 5 s","1"' in report.pages(file)


def test_a_slow_rival_gets_as_many_keys_as_all_where_time_is_limited(
    tmp_path: Path,
) -> None:
    case = Case(RIVALS["persidict"], FULL, tmp_path)
    assert case.count(1_000_000) < case.count(1_000_000, limited=True) == 1_000_000


def test_rivals_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    run(
        WORKLOADS["small_set"],
        TINY,
        tmp_path,
        repeat=2,
        rivals=["dict", "chest"],
        fair=False,
        tick=order.append,
    )

    assert order == ["small_set: dict", "small_set: chest"] * 2


def test_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    workload = example(baselines=("raw",))
    ended = [outcome("raw", 1, 10, 100), outcome("chest", 1, 5, 200)]

    found = report.rows(workload, ended, TINY)

    assert [row.rival for row in found] == ["raw", "chest"]
    assert (found[1].median, found[1].low, found[1].high) == (5, 1, 200)
    assert found[1].ratios == {"raw": (1, 0.5, 2)}


@pytest.mark.parametrize(
    ("goal", "met", "missed"),
    [
        (Goal("time [ms]", at_least=2, against="raw"), 5, 6),
        (Goal("time [ms]", at_most=1.2, against="raw"), 12, 13),
        (Goal("time [ms]", at_most=100), 100, 101),
        (Goal("time [ms]", at_most=lambda sizes: sizes.arrays), 8, 9),
    ],
)
def test_goal_is_met_up_to_its_limit_and_no_further(
    goal: Goal, met: float, missed: float
) -> None:
    workload = example(baselines=("raw",), goals=(goal,))

    for time, expected in ((met, True), (missed, False)):
        ended = [outcome("raw", 10), outcome("chest", time)]
        found = report.rows(workload, ended, FULL)
        assert [verdict.met for verdict in found[1].verdicts] == [expected]
        assert found[0].verdicts == []


def test_goal_without_its_rival_is_left_open() -> None:
    goal = Goal("time [ms]", at_least=2, against="raw")
    workload = example(baselines=("raw",), goals=(goal,))

    assert report.rows(workload, [outcome("chest", 1)], TINY)[0].verdicts == []


def test_command_line_prints_a_table_and_writes_all_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "run.json"

    options = ["--quick", "--repeat", "3", "--rivals", "dict,log"]
    places = ["--json", str(target), "--folder", str(tmp_path)]

    status = main(["lookups", *options, *places])

    written = json.loads(target.read_text(encoding="utf-8"))
    assert status == 0
    assert "missing key [ns]  dict" in capsys.readouterr().out
    assert [len(each["samples"]) for each in written["outcomes"]] == [3, 3]
    assert written["versions"]["numpy"] == np.__version__
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize(
    "wrong", [["no_such"], ["--rivals", "dict,no_such"], ["plot"], ["pages"]]
)
def test_command_line_refuses_what_it_does_not_know(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(wrong)


def test_pages_have_a_table_for_each_figure_of_a_written_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = [outcome("raw", 1, 2, 4), outcome("chest", 2, 4, 8)]
    found = report.rows(example(baselines=("raw",)), ended, TINY)
    source = tmp_path / "run.json"
    source.write_text(report.as_json(found, ended, TINY, tmp_path), encoding="utf-8")

    assert main(["pages", str(source)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert ".. csv-table:: ``example``, time [ms]" in lines
    assert '   "raw","2","1","4","–"' in lines
    assert '   "chest","4","2","8","0.5"' in lines


def test_pages_of_small_pairs_have_a_line_for_each_rival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = []
    for name, least in (("rows_10B", 1.0), ("rows_1e3", 100.0), ("rows_1e3", 2000.0)):
        ended = [outcome("lmdb", least), outcome("chest", 2 * least)]
        found = report.rows(replace(example(), name=name), ended, TINY)
        sources.append(tmp_path / f"{least}.json")
        text = report.as_json(found, ended, TINY, tmp_path)
        sources[-1].write_text(text, encoding="utf-8")

    assert main(["pages", *map(str, sources)]) == 0

    shown = capsys.readouterr().out
    assert shown.split("\n\n", 1)[1] == (
        ".. csv-table:: time [ms]\n"
        "   :header-rows: 1\n\n"
        '   "rival","``rows_10B``","``rows_1e3``"\n'
        '   "lmdb","1","2,000"\n'
        '   "chest","2","4,000"\n'
    )


def test_pages_of_a_run_of_growth_are_a_paragraph_and_a_table(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.growth.draw", lambda found: None)
    figures = {"3 keys: open [ms]": 1.0, "1000 keys: open [ms]": 2500.0}
    ended = [Outcome("growth", "chest", [figures])]
    found = report.rows(WORKLOADS["growth"], ended, TINY)
    source = tmp_path / "run.json"
    source.write_text(report.as_json(found, ended, TINY, tmp_path), encoding="utf-8")

    assert main(["pages", str(source)]) == 0

    machine, table = capsys.readouterr().out.split("\n\n", 1)
    assert "\n" not in machine
    assert table == (
        ".. csv-table:: ``growth``\n"
        "   :header-rows: 1\n\n"
        '   "keys","open [ms]"\n'
        '   "3","1"\n'
        '   "1,000","2,500"\n'
    )


def test_plot_draws_a_written_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ended = [outcome("raw", 1, 2), outcome("chest", 1, 3)]
    found = report.rows(example(baselines=("raw",)), ended, TINY)
    source = tmp_path / "run.json"
    source.write_text(report.as_json(found, ended, TINY, tmp_path), encoding="utf-8")

    # matplotlib keeps fonts open as long as the process lives.
    command = [sys.executable, "-m", "benchmarks", "plot", str(source)]
    subprocess.run(command, cwd=Path(benchmarks.__file__).parents[1], check=True)

    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_workload_that_asks_for_it_runs_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = WORKLOADS["open_many"]
    # Only this process sees the one that fails.
    monkeypatch.setitem(WORKLOADS, "open_many", example(alone=True))

    ended = run(workload, TINY, tmp_path, repeat=1, rivals=["log"])

    assert ended[0].failed == ""
    assert list(ended[0].samples[0]) == ["20 keys [ms]", "20 keys [MiB]"]


def test_slow_rival_gets_a_thousand_pairs_of_a_million(tmp_path: Path) -> None:
    slow, fast = (
        Case(RIVALS[name], FULL, tmp_path).count(1_000_000)
        for name in ("sqlitedict", "chest")
    )

    assert (slow, fast) == (1_000, 1_000_000)


def test_workload_that_takes_long_runs_only_when_it_is_named() -> None:
    asked = [name for name, workload in WORKLOADS.items() if workload.asked]

    assert "growth" in asked
    assert "small_get" not in asked


def test_growth_is_drawn_from_a_written_run_and_again_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = ({"20 keys: open [ms]": 1.0, "3 keys: open [ms]": 2.0},)
    ended = [Outcome("growth", "chest", list(figures))]
    found = report.rows(WORKLOADS["growth"], ended, TINY)
    source = tmp_path / "run.json"
    source.write_text(report.as_json(found, ended, TINY, tmp_path), encoding="utf-8")
    code = (
        "import json, pathlib, sys\n"
        "from benchmarks import growth\n"
        "source, target = map(pathlib.Path, sys.argv[1:])\n"
        "found = growth.curves(json.loads(source.read_text())['rows'])\n"
        "assert found == {'open [ms]': [(3, 2.0), (20, 1.0)]}, found\n"
        "growth.draw(found, target)\n"
    )

    for picture in ("one.svg", "two.svg"):
        # matplotlib keeps fonts open as long as the process lives.
        command = [sys.executable, "-c", code, str(source), str(tmp_path / picture)]
        subprocess.run(command, cwd=Path(benchmarks.__file__).parents[1], check=True)

    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("names", [["product", "shuffle_p2p"], ["shuffle_tasks"], []])
def test_workloads_of_dask_run_tiny(names, capsys) -> None:
    pytest.importorskip("distributed")
    from benchmarks.dask import WORKLOADS as OF_DASK
    from benchmarks.dask import main as compare

    names = names or ["get_spilled", "second_run", "nothing_stored"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(["--quick", *names])

    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(shown)) == names
    assert set(names) <= set(OF_DASK)
