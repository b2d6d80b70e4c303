"""Everything that assumes an operating system, and what to do on another one.

Owns: locks between processes, complete writes and reads, maps of files that hold no
descriptor, how much memory there is and is used, who can write to a file, and one
helper thread to do two things at once inside a call.
Does not own: when any of this is done, and the names and meaning of the files.
"""

from __future__ import annotations

from chest.system import files, hosts, locks, maps, memory, places, threads

POSIX = files.POSIX
Descriptor = files.Descriptor
close = files.close
flush_file = files.flush_file
pwrite_all = files.pwrite_all
read = files.read
read_ahead = files.read_ahead
read_all = files.read_all
sync_directory = files.sync_directory
sync_file = files.sync_file
write_all = files.write_all
claim = hosts.claim
holder = locks.holder
lock = locks.lock
open_directory = locks.open_directory
try_lock = locks.try_lock
try_share = locks.try_share
unlock = locks.unlock
FileMap = maps.FileMap
address = maps.address
map_file = maps.map_file
map_shared = maps.map_shared
map_shared_words = maps.map_shared_words
untouched = maps.untouched
give_back_memory = memory.give_back_memory
memory_limit = memory.memory_limit
real_memory = memory.real_memory
boot = places.boot
filesystem = places.filesystem
is_private = places.is_private
keeps_room = places.keeps_room
network = places.network
run_beside = threads.run_beside
