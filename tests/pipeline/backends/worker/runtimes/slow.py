"""A module that takes half a second to import, as large runtimes do."""

import time

time.sleep(0.5)
ROWS = 1
