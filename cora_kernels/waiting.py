"""How the CPU's threads wait for one another. Imported before torch, not after, it has them sleep soon.

libgomp, the OpenMP library of torch's builds for Linux, reads it from the environment as torch loads it. By itself it
has a thread that waits check for some 5 ms, longer than a scheduler's slice: where another process runs on the cores
too, the thread that is early keeps its core from the one that it waits for.
"""

import os

# A fraction of a millisecond, which the gaps between the kernels of a model that decodes stay under.
CHECKS = "10000"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = CHECKS
