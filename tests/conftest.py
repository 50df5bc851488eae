"""What holds for every test."""

import os

from pipeline import dag

for name, value in dag.ENVIRONMENT.items():  # as in a stage; it has to be set before torch is imported
    os.environ.setdefault(name, value)
