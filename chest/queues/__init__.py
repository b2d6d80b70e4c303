"""Queues that live in a chest's folder, shared by processes.

Owns: the records of items, the state that all handles share, leases, and the two classes
that users see. Does not own: how an item becomes bytes (`chest.formats`), the folder.

On disk a queue is a folder of its own, ``.queue-<name>``, inside a chest's folder (there
need not be a chest in it). In it lie::

    state         the shared words: where the first and the last item are (`header`)
    items-0000    segments: records of items, one after the other (`items`)
    leases-0      who holds which item until when (`leases`); its twin takes over
    dead-0000     items that were given up, framed like items
    value-<n>     the value file of an item that is large (`coding`)
    .holder-<id>  locked by an open handle as long as it lives

Invariants
----------
Q1  Everything but the state is published by one store of one word of the state: before
    it nothing happened, after it everything did.
Q2  The state is changed under the folder's lock alone; it may be looked at without.
Q3  Bytes between the first and the last item are never changed.
Q4  A position is used for one item only, for ever.
Q5  An item is in one of four places: waiting, leased, among the dead, or gone.
"""

from __future__ import annotations

from chest.queues import durable, flushing, lending

DeadLetter = lending.DeadLetter
DurableQueue = durable.DurableQueue
FlushQueue = flushing.FlushQueue
ShutDown = durable.ShutDown
