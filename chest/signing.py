"""Keyed hashes over records and files, for chests that others can write to.

Owns: the key of ``sign_key=`` and what is hashed with it (HMAC-SHA256, RFC 2104, cut to
128 bits). The key itself is never stored. Does not own: where signatures are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable

from chest import errors
from chest.protocols import Source

__all__ = ["Key"]

DIGITS = 32  # hexadecimal digits kept of a signature: 128 bits
SHORTEST_KEY = 16  # bytes


class Key:
    """The key of a signed chest.

    Parameters
    ----------
    secret : bytes, callable or str
        The key itself, a function that returns it, or ``"env:NAME"``.

    Raises
    ------
    ValueError
        Not one of these, the variable is not set, or the key is too short.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes | Callable[[], bytes] | str) -> None:
        if callable(secret):
            secret = secret()
        if isinstance(secret, str):
            if not secret.startswith("env:"):
                msg = "sign_key= is bytes, a function, or 'env:NAME'"
                raise ValueError(msg)
            name = secret.removeprefix("env:")
            if name not in os.environ:
                msg = f"sign_key='env:{name}': {name} is not set"
                raise ValueError(msg)
            secret = os.environ[name].encode()
        if len(secret) < SHORTEST_KEY:
            msg = (
                f"sign_key= has {len(secret)} bytes, {SHORTEST_KEY} are the least: "
                f"secrets.token_bytes(32) makes a good one"
            )
            raise ValueError(msg)
        self._secret = bytes(secret)

    def sign_record(self, body: bytes, number: int) -> bytes:
        """The check of one record of the manifest, bound to its place in the log."""
        message = b"record %d " % number + body
        return self._sign(message).encode()

    def sign_file(self, data: memoryview) -> str:
        """The signature of a file; its record binds it to key and file id. O(bytes)."""
        code = hmac.new(self._secret, b"file ", hashlib.sha256)
        code.update(data)
        return code.hexdigest()[:DIGITS]

    def check_file(self, source: Source, signature: str) -> None:
        """Raise unless the file is what was signed; nothing of it was parsed yet."""
        if not hmac.compare_digest(self.sign_file(source.data), signature):
            msg = (
                f"{source.path}, the value of {errors.short(source.key)}, does not "
                f"carry the signature in the manifest: it was changed by somebody "
                f"without the key, or is damaged"
            )
            raise errors.SignatureError(
                msg,
                key=source.key,
                path=source.path,
            )

    def _sign(self, message: bytes) -> str:
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:DIGITS]
