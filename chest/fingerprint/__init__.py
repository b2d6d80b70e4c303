"""Fingerprints: of values by their content, of functions by what they do.

Owns: the names that other floors use.
Does not own: how either is made (`values`, `libraries`, `code`), what it is good for.
"""

from __future__ import annotations

from chest.fingerprint.code import Code, is_own, plain_function
from chest.fingerprint.values import fingerprint, token

__all__ = ["Code", "fingerprint", "is_own", "plain_function", "token"]
