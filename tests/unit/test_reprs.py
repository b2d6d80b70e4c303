"""Numbers as people read them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import reprs


def never() -> int:
    raise AssertionError("nobody asked for a percentage")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_234_567, "1.2 MB"),
        (9_960_000, "10 MB"),
        (999_950, "1 MB"),
        (4_000_000_000, "4 GB"),
        (-2_500_000, "-2.5 MB"),
        (3 * 10**18, "3 EB"),
        (float("inf"), "unlimited"),
    ],
)
def test_bytes_are_written_in_decimal_units(count, text):
    assert reprs.bytes_text(count) == text


@given(st.integers(0, 10**18))
def test_what_is_written_is_read_back_within_its_figures(count):
    back = reprs.parse_bytes(reprs.bytes_text(count), limit=never)

    assert abs(back - count) <= 0.06 * count


@pytest.mark.parametrize(
    ("amount", "count"),
    [
        (1000, 1000),
        (1e9, 10**9),
        (1.9, 1),
        ("4GB", 4 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5e3 kb", 1_500_000),
        ("  7 ", 7),
        ("2g", 2 * 10**9),
        (".5 KiB", 512),
        ("1_000", 1000),
        (0, 0),
        (float("inf"), reprs.UNLIMITED),
    ],
)
def test_amounts_are_read_without_asking_for_the_limit(amount, count):
    assert reprs.parse_bytes(amount, limit=never) == count


def test_a_percentage_is_of_the_limit():
    assert reprs.parse_bytes("25%", limit=lambda: 1000) == 250
    assert reprs.parse_bytes("12.5 %", limit=lambda: 800) == 100


@pytest.mark.parametrize(
    "amount",
    [
        *("", "GB", "4 bananas", "-1", "-4GB", "nan", "1.2.3", "4 G B", "%", "e5", "_"),
        *(-1, float("nan"), float("-inf"), None, True, [4]),
    ],
)
def test_nonsense_is_refused_with_an_example(amount):
    with pytest.raises(ValueError, match=re.escape(f"room={amount!r}: bytes, or")):
        reprs.parse_bytes(amount, option="room", limit=lambda: 1000)


def test_a_share_is_of_something_and_at_most_all_of_it():
    assert reprs.parse_bytes("100%", limit=lambda: 1000) == 1000
    with pytest.raises(ValueError, match="at most '100%'"):
        reprs.parse_bytes("120%", limit=lambda: 1000)
    with pytest.raises(ValueError, match="a share is not taken"):
        reprs.parse_bytes("20%")


def test_counts_have_separators_and_a_plural():
    assert reprs.count_text(12345) == "12,345"
    assert reprs.count_text(0, "key") == "0 keys"
    assert reprs.count_text(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3e-8, "30 ns"),
        (0.0021, "2.1 ms"),
        (0.9999, "1 s"),
        (59.99, "1 min"),
        (61, "1 min 1 s"),
        (3599.7, "1 h"),
        (90_000, "1 d 1 h"),
        (-2, "-2 s"),
        (float("inf"), "for ever"),
        (float("nan"), "unknown"),
    ],
)
def test_seconds_are_written_in_the_unit_that_suits(seconds, text):
    assert reprs.seconds_text(seconds) == text


def test_the_line_names_path_keys_and_budget():
    assert (
        reprs.line("Chest", "/tmp/x", 1, 1, 5, 10**9)
        == "<Chest at /tmp/x: 1 key, 1 in memory, 5 B of 1 GB>"
    )
    assert reprs.line("Chest", "/x", 0, 0, 0, reprs.UNLIMITED).endswith("no limit>")


def test_html_escapes_everything_and_is_well_formed():
    evil = "<script>&\"'"

    text = reprs.html(evil, [(evil, evil)], [(evil, 1, 4)])

    tree = ElementTree.fromstring(text)
    assert [each.text for each in tree.iter("td")][:2] == [evil, evil]
    assert tree.find("strong").text == evil
    assert tree.find(".//script") is None


@pytest.mark.parametrize(
    ("used", "most", "share"), [(1, 4, "25.0"), (9, 4, "100.0"), (0, 0, "100.0")]
)
def test_a_bar_is_as_long_as_the_share_that_is_used(used, most, share):
    assert f"width:{share}%" in reprs.html("x", [], [("memory", used, most)])


def test_a_table_is_aligned_and_has_no_trailing_blanks():
    text = reprs.table(("k", "n"), [("a", 1000), ("bbb", 2)])

    assert text.splitlines() == ["k       n", "---  ----", "a    1000", "bbb     2"]


def test_an_empty_table_still_has_its_headers():
    assert reprs.table(("key", "size"), []).splitlines() == ["key  size", "---  ----"]
