"""The immutable hash table in a mapped file."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import checkpoint, system
from chest.checkpoint import Checkpoint, Damaged

U64 = st.integers(0, 2**64 - 1)
ROWS = st.lists(st.tuples(U64 | st.integers(0, 3).map(lambda i: i << 40), U64, U64))


class Model(NamedTuple):
    """What a checkpoint was made of, and its file."""

    hashes: array
    births: array
    places: array
    hints: array
    heap: bytes
    data: bytes

    def open(self) -> Checkpoint:
        return Checkpoint(memoryview(self.data))

    def found(self) -> dict[int, list[int]]:
        found = defaultdict(list)
        for digest, place in zip(self.hashes, self.places, strict=True):
            found[digest].append(place)
        return found


def made(
    hashes: Sequence[int],
    *,
    births: Sequence[int] | None = None,
    places: Sequence[int] | None = None,
    heap: Sequence[bytes] = (),
    about: bytes = b"{}",
) -> Model:
    columns = [
        array("Q", hashes),
        array("Q", range(len(hashes)) if births is None else births),
        array("Q", range(7, len(hashes) + 7) if places is None else places),
        array("Q", range(70, len(hashes) + 70)),
    ]
    pieces = checkpoint.lines(
        about=about,
        hashes=columns[0],
        births=columns[1],
        places=columns[2],
        hints=columns[3],
        heap=heap,
    )
    return Model(*columns, b"".join(heap), b"".join(pieces))


def spread(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.getrandbits(64) for _ in range(count)]


def assert_right_or_damaged(model: Model, opened: Checkpoint) -> int:
    """Ask everything; the number of answers that were refused."""
    refused = 0
    questions = [
        *((opened.find, (d,), rows) for d, rows in model.found().items()),
        (opened.find, (12345,), []),
        *((opened.place, (i,), place) for i, place in enumerate(model.places)),
        *((opened.birth, (i,), birth) for i, birth in enumerate(model.births)),
        (opened.places, (), list(model.places)),
        (opened.births, (), list(model.births)),
        (opened.first_after, (model.births[0],), 1),
        (opened.heap, (0, len(model.heap)), list(model.heap)),
    ]
    for ask, arguments, answer in questions:
        try:
            got = ask(*arguments)
        except Damaged:
            refused += 1
        else:
            assert (got if isinstance(answer, int) else list(got)) == answer
    return refused


def flipped(data: bytes, at: int, bits: int = 0xFF) -> memoryview:
    damaged = bytearray(data)
    damaged[at] ^= bits
    return memoryview(damaged)


@given(ROWS, U64, st.lists(st.binary(max_size=50)), st.binary(max_size=20))
def test_it_agrees_with_a_dict(rows, missing, heap, about):
    model = made(
        [row[0] for row in rows],
        births=sorted(row[1] for row in rows),
        places=[row[2] >> 20 << 20 | i for i, row in enumerate(rows)],  # no two alike
        heap=heap,
        about=about,
    )
    opened = model.open()
    known = model.found()
    rows_of = {place: row for row, place in enumerate(model.places)}

    assert len(opened) == len(rows)
    assert opened.about == about
    for digest in [*known, missing, 0, 2**64 - 1]:
        found = [rows_of[place] for place in opened.find(digest)]
        # Others that share the upper bits may be among them.
        right = [rows_of[place] for place in known.get(digest, [])]
        assert found == sorted({*found, *right})
        assert {model.hashes[row] >> checkpoint.TAG_SHIFT for row in found} <= {
            digest >> checkpoint.TAG_SHIFT
        }
    asked = [*known, missing, 0, 2**64 - 1]
    firsts = {i: each[0] for i, each in enumerate(map(opened.find, asked)) if each}
    which, places, hints = model.open().find_many(np.array(asked, np.uint64))
    assert dict(zip(which.tolist(), places.tolist(), strict=True)) == firsts
    assert hints.tolist() == [model.hints[rows_of[each]] for each in places.tolist()]
    for ordinal in range(len(rows)):
        assert opened.place(ordinal) == model.places[ordinal]
        assert opened.birth(ordinal) == model.births[ordinal]
    assert opened.places() == memoryview(model.places)
    assert opened.births() == memoryview(model.births)
    assert bytes(opened.heap(0, len(model.heap))) == model.heap
    opened.check()


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(0, 2**33))
def test_first_after_counts_the_rows_born_until_then(births, base):
    model = made(births, births=sorted(base + birth for birth in births))
    opened = model.open()

    for birth in (0, *range(base, base + 52), 2**64 - 1):
        expected = sum(each <= birth for each in model.births)
        assert opened.first_after(birth) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_a_checkpoint_of_hardly_any_rows_is_one(count):
    opened = made([1 << 50] * count).open()

    opened.check()
    assert len(opened) == count
    assert list(opened.find(1 << 50)) == list(opened.places())
    assert opened.find(1) == []
    assert opened.first_after(2**64 - 1) == count
    assert opened.births().format == opened.places().format == "Q"
    assert len(opened.births()) == len(opened.places()) == count
    assert len(opened.heap(0, 0)) == 0


def test_rows_whose_hashes_are_all_equal_are_all_found():
    digest = 9 << checkpoint.TAG_SHIFT
    opened = made([digest] * 5000).open()

    assert list(opened.find(digest)) == list(opened.places())
    assert opened.find(digest - 1) == opened.find(10 << checkpoint.TAG_SHIFT) == []


def test_hashes_that_differ_in_one_bit_of_the_tag_are_told_apart():
    hashes = [0, *(1 << bit for bit in range(checkpoint.TAG_SHIFT, 64))]
    opened = made(hashes).open()

    assert [opened.find(digest) for digest in hashes] == [
        [place] for place in opened.places()
    ]


@pytest.mark.parametrize(
    ("births", "width"),
    [
        ([2**32 - 2, 2**32 - 1], 4),
        ([2**32, 2**33 - 1], 4),
        ([2**32 - 1, 2**32], 8),
        ([0, 2**64 - 1], 8),
    ],
)
def test_births_that_share_their_upper_half_take_half_the_room(births, width):
    model = made(births, births=births)
    opened = model.open()

    assert list(opened.births()) == births == [opened.birth(0), opened.birth(1)]
    shorter = made(births, births=[0, 0])
    assert (len(model.data) - len(shorter.data)) == 2 * (width - 4)


@pytest.mark.parametrize("count", [1000, 100_000])
def test_it_grows(count):
    model = made(spread(count), births=range(3, 3 * count + 3, 3))
    opened = model.open()

    for digest, place in zip(model.hashes, model.places, strict=True):
        assert place in opened.find(digest)
    # Some share their tags with a key's: count² of 2 to the power of 30.
    more = sum(len(opened.find(each)) for each in model.hashes) - count
    more += sum(len(opened.find(each)) for each in spread(count, seed=1))
    assert more < 60
    assert opened.births() == memoryview(model.births)
    assert opened.first_after(3 * count // 2) == count // 2
    assert len(model.data) <= 32 * count
    assert len(opened._sound) + len(opened.ready) + len(opened._placed) < count // 10


@pytest.mark.parametrize("count", [1, 20, 400])
def test_a_byte_that_changed_is_noticed_wherever_it_is(count):
    model = made(spread(count), heap=[b"some", b"", b"bytes"], about=b"around")
    step = 1 if count < 100 else 13

    for at in range(0, len(model.data), step):
        for bits in (1, 0x80, 0xFF):
            with pytest.raises(Damaged):
                Checkpoint(flipped(model.data, at, bits)).check()


def test_a_damaged_file_answers_rightly_or_not_at_all():
    model = made(spread(300), heap=[b"some bytes" * 30])
    refused = 0

    for at in range(0, len(model.data), 11):
        try:
            opened = Checkpoint(flipped(model.data, at))
        except Damaged:
            continue
        refused += assert_right_or_damaged(model, opened)
    assert refused
    assert assert_right_or_damaged(model, model.open()) == 0


def test_a_file_cut_anywhere_is_refused_when_it_is_opened():
    model = made(spread(20), heap=[b"heap"])

    for size in range(len(model.data)):
        with pytest.raises(Damaged):
            Checkpoint(memoryview(model.data)[:size])
    with pytest.raises(Damaged, match="bytes instead of"):
        Checkpoint(memoryview(model.data + b"\0"))


def test_who_asks_for_many_rows_meets_damage_as_well():
    model = made(spread(300))
    digests = np.array(model.hashes)
    right = [each.tolist() for each in model.open().find_many(digests)]
    refused = 0

    for at in range(0, len(model.data), 11):
        try:
            opened = Checkpoint(flipped(model.data, at))
            assert [each.tolist() for each in opened.find_many(digests)] == right
        except Damaged:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("more", [-8, 0, 8])
def test_a_last_page_is_checked_whether_full_or_not(more):
    empty = len(made([1]).data) - 16  # its one checksum, its seal
    heap = bytes(checkpoint.PAGE - empty + more)
    model = made([1], heap=[heap])
    last = empty + len(heap) - 1

    assert last == checkpoint.PAGE + more - 1
    assert bytes(model.open().heap(0, len(heap))) == heap
    with pytest.raises(Damaged, match="page at byte"):
        Checkpoint(flipped(model.data, last)).heap(len(heap) - 1, 1)


def test_damage_is_met_only_by_those_who_touch_its_page():
    model = made(spread(10), heap=[bytes(3 * checkpoint.PAGE)])
    opened = Checkpoint(flipped(model.data, len(model.data) - 100))

    assert opened.find(model.hashes[4]) == [model.places[4]]
    assert bytes(opened.heap(5, 10)) == bytes(10)
    with pytest.raises(Damaged, match="page at byte 12288"):
        opened.heap(5, 3 * checkpoint.PAGE - 5)


def test_check_reads_again_what_was_sound_before():
    model = made(spread(10), heap=[bytes(2 * checkpoint.PAGE)])
    data = bytearray(model.data)
    opened = Checkpoint(memoryview(data))
    opened.check()
    assert opened.find(model.hashes[4]) == [model.places[4]]

    data[300] ^= 1

    with pytest.raises(Damaged, match="page at byte 0"):
        opened.check()
    with pytest.raises(Damaged, match="page at byte 0"):
        opened.find(model.hashes[4])


def test_two_files_cannot_be_mixed():
    one, two = (made([1, 2], about=about) for about in (b"one", b"two"))
    mixed = two.data[:72] + one.data[72:]

    assert Checkpoint(memoryview(mixed)).about == b"two"
    with pytest.raises(Damaged, match="checksums"):
        Checkpoint(memoryview(mixed)).find(1)


def test_another_version_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
        newer = made([1])

    with pytest.raises(Damaged, match=f"version {checkpoint.VERSION}"):
        newer.open()


def test_a_machine_that_would_read_other_numbers_does_not_read(monkeypatch):
    model = made([1])
    monkeypatch.setattr(sys, "byteorder", "big")

    with pytest.raises(Damaged, match="little-endian"):
        model.open()


def test_data_that_is_not_aligned_is_refused():
    model = made([1, 2])
    room = bytearray(len(model.data) + 8)
    for offset in range(1, 8):
        part = memoryview(room)[offset : offset + len(model.data)]
        part[:] = model.data
        with pytest.raises(ValueError, match="multiple of 8") as caught:
            Checkpoint(part)
        assert not isinstance(caught.value, Damaged)
        part.release()


def test_data_of_wider_or_scattered_items_is_refused():
    data = memoryview(made([1, 2]).data)

    for other in (data.cast("Q"), data[::2]):
        with pytest.raises(ValueError, match="contiguous view of bytes"):
            Checkpoint(other)


def test_a_row_or_bytes_that_are_not_there_are_damage():
    opened = made([1, 2], heap=[b"abc"]).open()

    for ordinal in (-1, 2, 2**40):
        for ask in (opened.place, opened.birth):
            with pytest.raises(Damaged, match="of 2"):
                ask(ordinal)
    for at, size in [(-1, 2), (2, 2), (4, 0), (1, -1), (2**60, 1)]:
        with pytest.raises(Damaged, match="heap of 3"):
            opened.heap(at, size)


def test_too_many_rows_are_refused_before_they_are_sorted():
    rows = np.broadcast_to(np.uint64(0), (2**30,))

    with pytest.raises(ValueError, match=r"1073741824 rows: .* less than"):
        checkpoint.lines(
            about=b"", hashes=rows, births=rows, places=rows, hints=rows, heap=[]
        )


@pytest.mark.parametrize(
    ("births", "places", "message"),
    [
        ([1], [1, 2], "2 hashes, 1 births, 2 places"),
        ([1, 2], [1], "2 hashes, 2 births, 1 places"),
        ([2, 1], [1, 2], "descend"),
    ],
)
def test_columns_that_do_not_fit_are_refused(births, places, message):
    with pytest.raises(ValueError, match=message):
        made([1, 2], births=births, places=places)


def test_arrays_and_numpy_arrays_make_the_same_file():
    model = made(spread(100))
    other = checkpoint.lines(
        about=b"{}",
        hashes=np.array(model.hashes),
        births=np.repeat(np.array(model.births), 2)[::2],
        places=np.array(model.places),
        hints=np.array(model.hints),
        heap=[],
    )

    assert b"".join(other) == model.data


def test_the_heap_is_one_whatever_its_pieces():
    whole = random.Random(0).randbytes(3 * checkpoint.CHUNK + 5)
    cuts = [0, 0, 1, 3, checkpoint.CHUNK + 1, checkpoint.CHUNK + 1, len(whole)]
    pieces = [memoryview(whole)[a:b] for a, b in itertools.pairwise(cuts)]

    model = made([1], heap=pieces)

    assert model.data == made([1], heap=[whole]).data
    assert bytes(model.open().heap(0, len(whole))) == whole


def test_the_pieces_of_the_file_are_neither_many_nor_large():
    rows = array("Q", range(10**5))
    heap = [b"x" * 100] * 10**5

    pieces = [
        len(each)
        for each in checkpoint.lines(
            about=b"", hashes=rows, births=rows, places=rows, hints=rows, heap=heap
        )
    ]

    assert len(pieces) < 20
    assert max(pieces) <= 2 * checkpoint.CHUNK


def test_a_mapped_file_is_looked_up_without_numpy(tmp_path: Path):
    path = tmp_path / "index"
    hashes = array("Q", spread(5000))
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    pieces = checkpoint.lines(
        about=b"x",
        hashes=hashes,
        births=array("Q", range(5000)),
        places=hashes,
        hints=array("Q", bytes(8 * 5000)),
        heap=[b"heap"],
    )
    system.write_all(fd, list(pieces))
    system.close(fd)
    code = (
        "import os, sys; from chest import checkpoint, system;"
        "fd = os.open(sys.argv[1], os.O_RDONLY); size = os.fstat(fd).st_size;"
        "c = checkpoint.Checkpoint(system.map_file(fd, size)); d = int(sys.argv[2]);"
        "assert c.find(d) == [d]; assert c.place(4321) == d; c.check();"
        "assert c.births()[4321] == c.birth(4321) == 4321 == c.first_after(4320);"
        "assert bytes(c.heap(0, 4)) == b'heap'; assert 'numpy' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code, path, str(hashes[4321])], check=True)
