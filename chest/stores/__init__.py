"""Where bytes live: `local` (a folder on this machine)."""
