"""Chests and dask: the memory of workers, results that outlive a run, collections.

Owns: the names; loading this module loads dask. Does not own: any behaviour.
"""

from __future__ import annotations

from chest.dask.workers import SpillChest as SpillChest
from chest.dask.workers import dask_setup as dask_setup
