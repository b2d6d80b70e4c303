"""Chests and dask: the memory of workers, results that outlive a run, collections.

Owns: the names; loading this module loads dask. Does not own: any behaviour.
"""

from __future__ import annotations

import importlib.util

from chest.errors import MissingDependency

if importlib.util.find_spec("dask") is None:
    msg = "chest.dask needs dask: pip install 'chest[dask]'"
    raise MissingDependency(msg)

from chest.dask.collections import array as array
from chest.dask.collections import bag as bag
from chest.dask.collections import dataframe as dataframe
from chest.dask.results import Results as Results
from chest.dask.results import checkpoint as checkpoint
from chest.dask.results import compute as compute
from chest.dask.results import get as get
from chest.dask.workers import SpillChest as SpillChest
from chest.dask.workers import dask_setup as dask_setup
