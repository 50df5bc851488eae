"""What holds for every test."""

import os

# Threads that wait without spinning: where other programs want the cores too, torch is several times faster
# so. It has to be set before torch is imported; the Snakefile does the same for the stages.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
