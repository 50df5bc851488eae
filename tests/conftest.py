"""What holds for every test, and the fixtures that tests of several rooms share."""

import os

from pipeline.stages import jobs

for name, value in jobs.ENVIRONMENT.items():  # as in a stage; it has to be set before torch is imported
    os.environ.setdefault(name, value)

pytest_plugins = ("tests.fixtures.small_networks",)
