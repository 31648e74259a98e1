"""One thread for each product of numpy's matrices. Import it before anything that imports numpy.

OpenBLAS would split every small product over all cores and wait in a busy loop for the slowest: measured on two busy
cores, a speaker's vector took 60 times as long as with one thread. What is worth several threads has its own pool.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
