"""Results of functions, kept in a chest between runs.

Owns: the names that users see. Does not own: fingerprints (`chest.fingerprint`), values
(`chest.Chest`).
"""

from __future__ import annotations

from chest.memo.decorator import CacheInfo, Memo, memoize
from chest.memo.pipeline import map

__all__ = ["CacheInfo", "Memo", "map", "memoize"]
