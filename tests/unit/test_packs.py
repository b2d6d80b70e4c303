"""Packs: batches go in whole, come out as they were, and damage is told by name."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import errors, packs, system
from chest.batches import Batch, Columns, Packed
from chest.folder import Folder
from chest.packs import Packs
from tests.failures import faults


def trusting(path: str, status: os.stat_result) -> None:
    """Every pack may be read."""


@pytest.fixture
def home(chest_dir: Path) -> Iterator[Folder]:
    home = Folder(str(chest_dir))
    yield home
    home.close()


@pytest.fixture
def mine(home: Folder) -> Iterator[Packs]:
    mine = Packs(home, trusting)
    yield mine
    mine.close()


def some(count: int, *, name: str = "k", birth: int = 1) -> Columns:
    small = Columns()
    for i in range(count):
        small.add(f"{name}{i}", birth + i, f"value of {name}{i}".encode() * (i % 3))
    return small


def values(mine: Packs, batch: Batch, count: int) -> list[bytes]:
    return [mine.read(Packed(batch, place), place) for place in range(count)]


def reread(mine: Packs, batch: Batch) -> Batch:
    """As another process makes it from the record."""
    return Batch(batch.record, mine.block(batch.record))


def test_a_batch_is_read_back_from_its_record_alone(home: Folder, mine: Packs) -> None:
    small = some(20, birth=7)
    batch = mine.write(small, sync=False)
    batch.record.generation = 5
    theirs = Packs(home, trusting)
    again = reread(theirs, batch)
    assert values(theirs, again, 20) == small.datas
    assert again.keys(None) == small.keys
    assert again.births() == list(range(7, 27))
    entry = Packed(again, 19)
    assert (entry.birth, entry.generation, entry.text) == (26, 5, "k19")
    assert (entry.size, entry.name) == (len(small.datas[19]), batch.name)
    theirs.close()


def test_a_rewritten_batch_keeps_the_generation_of_each_value(mine: Packs) -> None:
    small = Columns(rewritten=True)
    for i in range(9):
        small.add(i, 10 - i, b"x", 1 << (4 * i))
    batch = reread(mine, mine.write(small, sync=False))
    assert [Packed(batch, i).generation for i in range(9)] == small.generations
    assert [Packed(batch, i).birth for i in range(9)] == small.births
    assert batch.keys(None) == list(range(9))


def test_a_large_index_is_mapped_where_it_lies(home: Folder, mine: Packs) -> None:
    small = some(5000)
    batch = mine.write(small, sync=False)
    assert batch.record.size > packs.MAPPED_FROM
    assert batch.record.at % packs.PAGE == 0
    again = Batch(batch.record, fetch=mine.block)
    assert isinstance(again.load(), system.FileMap)
    assert values(mine, again, 5000) == small.datas
    assert (again.keys(None), again.births()) == (small.keys, small.births)
    assert (again.text(4999), again.mentions(b'"k4999"')) == (b'"k4999"', True)
    few = mine.write(some(70), sync=False)
    assert type(mine.block(few.record)) is bytes
    mine.delete(batch.name)
    assert again.text(7) == b'"k7"'  # whoever has it keeps it


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_a_large_index_that_is_damaged_is_no_index(
    harm: str, home: Folder, mine: Packs, chest_dir: Path
) -> None:
    record = mine.write(some(5000), sync=False).record
    file = chest_dir / record.name
    data = bytearray(file.read_bytes())
    data[record.at + 30_000] ^= 1
    file.write_bytes(data if harm == "flipped" else data[:-1])
    with pytest.raises(errors.CorruptChestError, match="checksum is wrong"):
        mine.block(record)


def test_batches_of_one_process_lie_in_one_pack(home: Folder, mine: Packs) -> None:
    batches = [mine.write(some(n, name=str(n)), sync=False) for n in (1, 5, 64)]
    assert len({batch.name for batch in batches}) == 1
    assert list(home.names()) == [batches[0].name]
    for batch, count in zip(batches, (1, 5, 64), strict=True):
        assert (
            values(mine, reread(mine, batch), count)
            == some(count, name=str(count)).datas
        )


def test_a_pack_that_is_large_gets_no_further_batch(
    mine: Packs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_NBYTES", 100)
    first, second = mine.write(some(9), sync=False), mine.write(some(9), sync=False)
    assert first.name != second.name
    assert values(mine, first, 9) == values(mine, second, 9)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, MemoryError])
def test_a_write_that_was_broken_off_shifts_no_later_batch(
    mine: Packs, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    before = mine.write(some(9, name="before"), sync=False)
    real = system.write_all

    def broken(*args: Any, **kwargs: Any) -> int:
        real(*args, **kwargs)  # all of it arrived, but nobody learns of it
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(system, "write_all", broken)
        with pytest.raises(kind):
            mine.write(some(9, name="lost"), sync=False)
    after = mine.write(some(9, name="after"), sync=False)
    for batch, name in ((before, "before"), (after, "after")):
        expected = some(9, name=name).datas
        assert values(mine, reread(mine, batch), 9) == expected


def test_threads_that_write_at_once_do_not_mix_their_batches(mine: Packs) -> None:
    start = threading.Barrier(4)
    written: list[tuple[Batch, str]] = []

    def work(name: str) -> None:
        start.wait()
        for number in range(50):
            label = f"{name}{number}-"
            written.append((mine.write(some(30, name=label), sync=False), label))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 200
    for batch, label in written:
        again = reread(mine, batch)
        assert again.keys(None) == some(30, name=label).keys
        assert values(mine, again, 30) == some(30, name=label).datas


def test_a_pack_may_be_ended_while_a_thread_appends_to_it(mine: Packs) -> None:
    """Its descriptor's number may be another file's by the next write."""
    stop = threading.Event()

    def end() -> None:
        while not stop.is_set():
            mine.end()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        batches = [mine.write(some(9, name=f"{n}-"), sync=False) for n in range(100)]
    finally:
        stop.set()
        thread.join()
    for number, batch in enumerate(batches):
        expected = some(9, name=f"{number}-").datas
        assert values(mine, reread(mine, batch), 9) == expected


def test_threads_read_more_packs_than_may_be_open(
    home: Folder, mine: Packs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that one thread lets go of is not missed by another."""
    monkeypatch.setattr(packs, "MOST_OPEN", 2)
    batches = []
    for number in range(6):
        batches.append(mine.write(some(9, name=f"{number}-"), sync=False))
        mine.end()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for turn in range(600):
                number = turn % 6
                expected = some(9, name=f"{number}-").datas
                assert values(mine, batches[number], 9) == expected
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(os.listdir("/proc/self/fd")) < 60


def test_a_descriptor_that_is_another_files_by_now_is_not_believed(
    home: Folder, mine: Packs
) -> None:
    batch = mine.write(some(9), sync=False)
    assert values(mine, batch, 9) == some(9).datas
    shared = mine._open[batch.name]
    other = os.open(home.path, os.O_RDONLY)
    os.dup2(other, shared)
    os.close(other)
    assert values(mine, batch, 9) == some(9).datas
    assert mine.block(batch.record) == mine.block(batch.record)


def test_packs_are_mapped_up_to_a_limit_and_read_beyond_it(home: Folder) -> None:
    theirs = Packs(home, trusting)
    first = theirs.write(some(3), sync=False)
    theirs.end()
    second = theirs.write(some(4), sync=False)
    theirs.end()
    sizes = [os.stat(home.join(each.name)).st_size for each in (first, second)]
    mine = Packs(home, trusting, sum(sizes) - 1)
    for _ in range(2):
        assert values(mine, first, 3) == some(3).datas
        assert values(mine, second, 4) == some(4).datas
        assert (mine._maps.keys(), mine._open.keys()) == ({first.name}, {second.name})
    mine.keep_only([second.name])
    assert not mine._maps
    theirs.close()
    mine.close()
    assert not mine._open


def test_what_was_appended_to_a_mapped_pack_is_read(home: Folder) -> None:
    mine = Packs(home, trusting, 1 << 20)
    one, two = mine.write(some(3), sync=False), mine.write(some(5), sync=False)
    assert values(mine, one, 3) == some(3).datas
    three = mine.write(some(7), sync=False)
    for batch, count in ((two, 5), (three, 7), (one, 3)):
        assert values(mine, batch, count) == some(count).datas
    assert len(mine._maps[one.name]) == os.stat(home.join(one.name)).st_size
    mine.close()


@pytest.mark.parametrize("mapped", [1 << 20, 0])
def test_reading_many_values_opens_their_pack_once(
    home: Folder, monkeypatch: pytest.MonkeyPatch, mapped: int
) -> None:
    theirs = Packs(home, trusting)
    small = Columns()
    for i in range(20):
        small.add(f"k{i}", 1 + i, bytes([i + 1]) * 8000)
    batch = theirs.write(small, sync=False)
    opened: list[str] = []
    open_, places = Folder.open, [0, 5, 6, 13, 19]
    monkeypatch.setattr(
        Folder,
        "open",
        lambda home, *args: (opened.append(args[0]), open_(home, *args))[1],
    )
    mine = Packs(home, trusting, mapped)
    for _ in range(3):
        found = [*mine.read_many(batch, places)]
        assert found == [(place, small.datas[place]) for place in places]
    assert opened == [batch.name]
    later = theirs.write(some(9), sync=False)  # behind what is mapped
    assert [*mine.read_many(later, [1, 8])] == [(i, some(9).datas[i]) for i in (1, 8)]
    mine.close()
    theirs.close()


def test_what_cannot_be_mapped_is_read(
    home: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    mine = Packs(home, trusting, 1 << 20)
    batch = mine.write(some(5000), sync=False)
    monkeypatch.setattr(system, "map_file", refuse)
    assert values(mine, reread(mine, batch), 5000) == some(5000).datas
    assert not mine._maps
    mine.close()


def test_threads_map_packs_and_let_go_of_them_at_once(
    home: Folder, mine: Packs
) -> None:
    batches = []
    for number in range(60):
        batches.append(mine.write(some(3, name=f"{number}-"), sync=False))
        mine.end()
    mapped = Packs(home, trusting, 1 << 20)
    failed: list[BaseException] = []

    def read(first: int) -> None:
        try:
            for turn in range(first, first + 1500):
                number = turn * 7 % 60
                expected = some(3, name=f"{number}-").datas
                assert values(mapped, batches[number], 3) == expected
                mapped.forget(batches[turn * 11 % 60].name)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    mapped.close()
    assert failed == []


def test_a_large_index_on_a_network_file_system_is_read(
    home: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "network", "nfs")
    packs = Packs(home, trusting)
    batch = packs.write(some(5000), sync=False)
    assert type(packs.block(batch.record)) is bytes
    packs.close()


def test_packs_on_a_network_file_system_are_not_mapped(home: Folder) -> None:
    home.network = "nfs"
    mine = Packs(home, trusting, 1 << 20)
    assert values(mine, mine.write(some(3), sync=False), 3) == some(3).datas
    assert not mine._maps
    mine.close()


def test_what_may_not_be_read_is_asked_of_the_open_file(home: Folder) -> None:
    asked = []

    def refuse(path: str, status: os.stat_result) -> None:
        asked.append((path, status.st_ino))
        raise errors.UntrustedError(path)

    theirs = Packs(home, trusting)
    batch = theirs.write(some(3), sync=False)
    mine = Packs(home, refuse)
    with pytest.raises(errors.UntrustedError):
        mine.read(Packed(batch, 0), "k0")
    with pytest.raises(errors.UntrustedError):
        mine.block(batch.record)
    path = home.join(batch.name)
    assert asked == [(path, os.stat(path).st_ino)] * 2
    theirs.close()
    mine.close()


def test_a_pack_is_not_removed_while_its_writer_may_append(
    home: Folder, mine: Packs
) -> None:
    theirs = Packs(home, trusting)
    batch = mine.write(some(3), sync=False)
    theirs.delete(batch.name)
    assert mine.is_there(batch.name)
    mine.end()
    theirs.delete(batch.name)
    assert not mine.is_there(batch.name)
    theirs.delete(batch.name)  # and once more, for nothing
    theirs.close()


def test_ones_own_pack_is_ended_and_removed(home: Folder, mine: Packs) -> None:
    batch = mine.write(some(3), sync=False)
    mine.delete(batch.name)
    assert list(home.names()) == []
    assert mine.write(some(3), sync=False).name != batch.name


def test_a_pack_that_is_gone_is_told_from_a_damaged_one(
    home: Folder, mine: Packs
) -> None:
    batch = mine.write(some(9), sync=False)
    path = Path(home.join(batch.name))
    mine.close()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        mine.read(Packed(batch, 1), "k1")
    with pytest.raises(errors.CorruptChestError, match="missing"):
        mine.block(batch.record)
    for plant in (
        lambda: path.symlink_to("/etc/passwd"),
        lambda: os.mkfifo(path),
        path.mkdir,
    ):
        plant()
        with pytest.raises(errors.CorruptValueError, match="'k1'"):
            mine.read(Packed(batch, 1), "k1")
        with pytest.raises(errors.CorruptChestError, match="not a plain file"):
            mine.block(batch.record)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("code", ["EMFILE", "EACCES", "EIO"])
def test_a_refusal_of_the_system_is_no_damage(mine: Packs, code: str) -> None:
    batch = mine.write(some(9), sync=False)
    number = getattr(errno, code)
    act = faults.failing(number, 1, forever=True)
    with faults.acting(act, faults.WRITES | faults.READS):
        with pytest.raises(errors.StoreError, match="'k1'") as caught:
            mine.read(Packed(batch, 1), "k1")
    assert caught.value.errno == number
    assert mine.read(Packed(batch, 1), "k1") == some(9).datas[1]
