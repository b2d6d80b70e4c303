"""Who is called at forks and ends; the ends themselves are in tests/processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import Chest, lifetime


class Member:
    """Writes down what it is called with."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> object:
        if name in ("before_fork", "after_fork_in_parent", "after_fork_in_child"):
            return lambda: self.calls.append(name)
        raise AttributeError(name)

    def at_exit(self) -> None:
        self.calls.append("at_exit")


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def member(calls: list[str]) -> Iterator[Member]:
    made = Member(calls)
    lifetime.register(made)
    yield made
    lifetime.forget(made)


def test_a_fork_stops_and_releases_its_members(
    member: Member, calls: list[str]
) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if calls == ["before_fork", "after_fork_in_child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert calls == ["before_fork", "after_fork_in_parent"]


def test_who_is_forgotten_is_not_called(member: Member, calls: list[str]) -> None:
    lifetime.forget(member)
    lifetime.forget(member)
    lifetime._at_exit()
    assert calls == []


def test_the_dead_are_not_called(calls: list[str]) -> None:
    lifetime.register(Member(calls))
    lifetime._at_exit()
    assert calls == []


def test_collecting_a_member_in_the_middle_of_anything_does_not_hang(
    member: Member,
) -> None:
    """A garbage collection may close a chest while its own thread registers another."""
    with lifetime._guard:
        lifetime.forget(member)


def test_a_chest_collected_inside_another_handles_lock_is_written_after_it(
    chest_dir: Path,
) -> None:
    """The collector may run anywhere, also where this thread holds the folder's lock."""
    with Chest(chest_dir) as one:
        other = Chest(chest_dir)
        other["x"] = [1]
        with one._spill.exclusive():
            other.__del__()
            assert not other._closed
        assert other._closed
        assert one["x"] == [1]
