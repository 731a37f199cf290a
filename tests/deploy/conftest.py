"""Lets the deployment tests share `loop_parts` (tests have no packages)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
