"""Results of functions, kept in a chest between runs.

Owns: the names that users see. Does not own: fingerprints (`chest.fingerprint`), values
(`chest.Chest`).
"""

from __future__ import annotations

from chest.memo import decorator, pipeline

CacheInfo = decorator.CacheInfo
Memo = decorator.Memo
memoize = decorator.memoize
Results = pipeline.Results
map = pipeline.map
