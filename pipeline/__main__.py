"""The stages by name: `python -m pipeline <stage> --help`."""

import sys

from pipeline.stages import command

if __name__ == "__main__":
    sys.exit(command.by_name(sys.argv[1:]))
