"""P8, P9: what several processes are told fits one order, whoever is killed meanwhile."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from chest import Chest
from tests.processes import linear
from tests.processes.linear import PENDING, Operation, fits

INF = math.inf


@pytest.mark.parametrize(
    ("history", "possible"),
    [
        ([(0, 1, "set", 5, None), (2, 3, "get", None, 5)], True),
        ([(0, 1, "set", 5, None), (2, 3, "get", None, None)], False),
        ([(0, 4, "set", 5, None), (2, 3, "get", None, None)], True),
        (
            [(0, 9, "set", 5, None), (1, 2, "get", None, 5), (3, 4, "get", None, None)],
            False,
        ),
        ([(0, 9, "incr", 0, 1), (0, 9, "incr", 0, 2)], True),
        ([(0, 9, "incr", 0, 1), (0, 9, "incr", 0, 1)], False),
        ([(0, 9, "add", 5, True), (0, 9, "add", 6, True)], False),
        ([(0, INF, "set", 5, PENDING), (3, 4, "get", None, 5)], True),
        ([(0, INF, "set", 5, PENDING), (3, 4, "get", None, None)], True),
        (
            [
                (0, INF, "set", 5, PENDING),
                (3, 4, "get", None, 5),
                (5, 6, "get", None, None),
            ],
            False,
        ),
        ([(0, 1, "swap", [None, 5], [True, 5]), (2, 3, "del", None, True)], True),
        ([(0, 1, "swap", [3, 5], [True, 5])], False),
        ([(0, 1, "transact", 5, None), (2, 3, "swap", [3, 6], [False, 5])], True),
    ],
)
def test_the_search_finds_an_order_where_there_is_one(history, possible) -> None:
    assert fits(Operation(*each) for each in history) is possible


def run_workers(
    folder: Path,
    method: str,
    *,
    processes: int = 4,
    turns: int = 100,
    threads: int = 1,
    kills: int = 0,
    seed: int = 0,
) -> None:
    """Let processes work on one chest, kill some, let others join; check what they saw."""
    context, luck = multiprocessing.get_context(method), random.Random(seed)
    path, logs = folder / "c", folder / "logs"
    path.mkdir(mode=0o700)
    logs.mkdir()
    names = itertools.count(1)

    def start():
        me = next(names)
        args = (str(path), str(logs / str(me)), 16 * me, turns, threads)
        child = context.Process(target=linear.work, args=args)
        child.start()
        return child

    children = [start() for _ in range(processes)]
    for _ in range(kills):
        victim = luck.choice(children)
        victim.join(luck.random() * turns / 2000)
        victim.kill()
        victim.join()
        children.remove(victim)
        victim.close()
        children.append(start())
    for child in children:
        child.join(100)
        assert child.exitcode == 0
        child.close()
    with Chest(path) as c:
        left = {key: c.get(key) for key in linear.KEYS}
        assert c.verify() == []
    found = linear.histories(logs)
    now = time.monotonic_ns()
    for key, history in found.items():
        assert history
        last = Operation(now, now + 1, "get", None, left[key])
        assert fits([*history, last]), linear.trouble([*history, last])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_processes_are_told_fits_one_order(tmp_path: Path, method: str) -> None:
    run_workers(tmp_path, method, processes=4 if method == "fork" else 2)


def test_what_threads_of_processes_are_told_fits_one_order(tmp_path: Path) -> None:
    run_workers(tmp_path, "fork", processes=2, turns=60, threads=3)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_when_some_are_killed_fits_one_order(
    tmp_path: Path, seed: int
) -> None:
    run_workers(tmp_path, "fork", turns=100, kills=6, seed=seed)


def pay(path: str, turns: int, seed: int) -> None:
    """Move money between two keys, and see whether any is missing."""
    luck = random.Random(seed)
    with Chest(path, publish="each") as c:
        for _ in range(turns):
            amount = luck.randrange(100)

            def move(t, amount=amount):
                t["one"] -= amount
                t["two"] += amount
                return t["one"] + t["two"]

            assert c.transact(move) == 0
            assert sum(c.transact(dict).values()) == 0


def test_no_process_sees_half_of_a_transaction(tmp_path: Path) -> None:
    """Also when the one who makes it is killed."""
    context = multiprocessing.get_context("fork")
    path = tmp_path / "c"
    with Chest({"one": 0, "two": 0}, path) as c:
        c.sync()
        children = [
            context.Process(target=pay, args=(str(path), 100, seed))
            for seed in range(4)
        ]
        for child in children:
            child.start()
        for child in children[:2]:
            child.join(0.02)
            child.kill()
        for child in children[2:]:
            child.join(60)
            assert child.exitcode == 0
        for child in children:
            child.join()
            child.close()
        assert c["one"] + c["two"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_hammering_fit_one_order(tmp_path: Path) -> None:
    """CHEST_HAMMER_SECONDS says how long, if not ten minutes."""
    end = time.monotonic() + float(os.environ.get("CHEST_HAMMER_SECONDS", "600"))
    for seed in itertools.count():
        folder = tmp_path / str(seed)
        folder.mkdir()
        method = ("fork", "fork", "fork", "forkserver", "spawn")[seed % 5]
        run_workers(folder, method, turns=150, threads=1 + seed % 2, kills=8, seed=seed)
        if time.monotonic() > end:
            return
