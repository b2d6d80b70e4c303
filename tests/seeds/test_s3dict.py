"""persidict's S3Dict: the documented program, on a bucket."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from chest import errors
from chest.seeds import S3Dict
from tests.buckets import BUCKET

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture
def d(bucket: str) -> Any:
    with S3Dict(bucket_name=BUCKET, root_prefix=bucket.split("/", 3)[3]) as d:
        yield d


def test_the_documented_program(s3_server: str) -> None:
    from tests.buckets import make_bucket

    make_bucket(s3_server, "my-bucket")
    cloud = S3Dict(bucket_name="my-bucket", region="us-east-1")
    cloud["Eliza"] = "MIT Eliza was a mock psychotherapist."
    cloud["Eliza", "year"] = 1965
    cloud["Eliza", "authors"] = ["Joseph Weizenbaum"]
    cloud.close()
    again = S3Dict(bucket_name="my-bucket")
    assert len(again) == 3
    assert again["Eliza", "year"] == again[["Eliza", "year"]] == 1965
    assert repr(again) == "S3Dict('s3://my-bucket')"
    assert again.dir_name == "s3://my-bucket"
    again.clear()
    assert dict(again) == {}
    again.close()


def test_parts_of_the_tree_and_ages(d: Any) -> None:
    d["a"] = 1
    d["b", "c"] = 2
    d["b", "d"] = 3
    assert sorted(d) == [("a",), ("b", "c"), ("b", "d")]
    part = d.get_subdict("b")
    assert dict(part.items()) == {("c",): 2, ("d",): 3}
    assert list(d.subdicts()) == ["b"]
    assert abs(d.timestamp("a") - time.time()) < 60
    assert sorted(d.newest_keys()) == sorted(d.oldest_keys()) == sorted(d)
    assert len(d.newest_keys(2)) == 2
    assert d.random_key() in [*d]
    part.clear()
    assert dict(d) == {("a",): 1}
    assert d.pop("a") == 1
    with pytest.raises(KeyError):
        d.timestamp("a")
    with pytest.raises(KeyError):
        d.popitem()


class Evil:
    def __reduce__(self) -> Any:
        return os.putenv, ("EVIL", "1")


def test_keys_must_be_safe_and_values_data(d: Any) -> None:
    for bad in ("a/b", "", "..", 5, b"a"):
        with pytest.raises((TypeError, ValueError)):
            d[bad] = 1
    with pytest.raises(errors.EncodingError):
        d["evil"] = Evil()
    with S3Dict(BUCKET, root_prefix="any", trust="any") as other:
        other["set"] = {1, Evil}
        assert Evil in other["set"]
