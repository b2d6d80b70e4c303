"""Fingerprints: of values by their content, of functions by what they do.

Owns: the names that other floors use.
Does not own: how either is made (`values`, `libraries`, `code`,
`ownership`), what it is good for.
"""

from __future__ import annotations

from chest.fingerprint import code, ownership, values

HANDLERS = values.HANDLERS
Code = code.Code
Walk = values.Walk
is_own = ownership.is_own
plain_function = code.plain_function
fingerprint = values.fingerprint
sealed = values.sealed
token = values.token
