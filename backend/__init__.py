"""Effigy's backend: one photo to a rigged Gaussian avatar. Knows torch, never bpy."""

import os

__version__ = "0.1.0"

# Torch and numba each own a thread pool; spinning idle threads of one starve the other (measured: 55 ms became 660 to
# 1900 ms). Read when torch is loaded, hence here. The small matrices of the fits gain nothing from a third pool
# (measured: the head's fit took 24 s with it on busy cores and 2 s without).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
