"""``python -m chest``: the same as the command ``chest``."""

from __future__ import annotations

import sys

from chest import cli

if __name__ == "__main__":
    sys.exit(cli.main())
