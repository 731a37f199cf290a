"""`python -m embodied.cli COMMAND`, which is what `accelerate launch -m embodied.cli` runs."""

from __future__ import annotations

import sys

from embodied.cli import main

if __name__ == "__main__":
    sys.exit(main())
