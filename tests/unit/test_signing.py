"""Keyed hashes; how a signed chest behaves is in tests/failures/test_trust.py."""

from __future__ import annotations

import pytest

from chest import errors
from chest.protocols import Source
from chest.signing import Key

SECRET = b"0123456789abcdef"


def source(data: bytes) -> Source:
    return Source("/p/x", memoryview(data), False, False, "k")


def test_a_key_comes_as_bytes_function_or_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHEST_KEY", SECRET.decode())
    made = [Key(SECRET), Key(lambda: SECRET), Key("env:CHEST_KEY")]
    assert len({key.sign_record(b"body", 1) for key in made}) == 1


@pytest.mark.parametrize("secret", [b"short", "no env", "env:CHEST_NOT_SET", b""])
def test_bad_keys_are_refused(secret: bytes | str) -> None:
    with pytest.raises(ValueError, match="sign_key"):
        Key(secret)


def test_signatures_depend_on_everything() -> None:
    key, other = Key(SECRET), Key(SECRET[::-1])
    signatures = [
        key.sign_record(b"body", 1),
        key.sign_record(b"body", 2),
        key.sign_record(b"bodz", 1),
        other.sign_record(b"body", 1),
        key.sign_file(memoryview(b"body")).encode(),
        key.sign_file(memoryview(b"record 1 body")).encode(),
    ]
    assert len(set(signatures)) == len(signatures)
    assert all(len(signature) == 32 for signature in signatures)


def test_a_changed_file_or_a_missing_signature_raises() -> None:
    key = Key(SECRET)
    good = key.sign_file(memoryview(b"data"))
    key.check_file(source(b"data"), good)
    for data, signature in ((b"date", good), (b"data", ""), (b"data", good[:-1])):
        with pytest.raises(errors.SignatureError) as caught:
            key.check_file(source(data), signature)
        assert (caught.value.key, caught.value.path) == ("k", "/p/x")


def test_the_secret_is_not_shown() -> None:
    assert "0123456789" not in repr(Key(SECRET))
