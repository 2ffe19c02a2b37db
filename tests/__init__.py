"""Tests, mirroring the source."""

import os

# Before anything imports torch: test files run side by side, and many start processes of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
