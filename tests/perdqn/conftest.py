"""Lets the tests import their helpers, and configurations name the toy environments as ``toys.Counting``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
