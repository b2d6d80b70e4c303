"""Chests and dask: the memory of workers, results that outlive a run, collections.

Owns: the names; loading this module loads dask. Does not own: any behaviour.
"""

from __future__ import annotations

from chest.dask.collections import array as array
from chest.dask.collections import bag as bag
from chest.dask.collections import dataframe as dataframe
from chest.dask.results import Results as Results
from chest.dask.results import checkpoint as checkpoint
from chest.dask.results import compute as compute
from chest.dask.results import get as get
from chest.dask.workers import SpillChest as SpillChest
from chest.dask.workers import dask_setup as dask_setup
