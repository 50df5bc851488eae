"""What must hold before 3 GB are downloaded: Python's version and room on the disk. `make` runs it.

It imports nothing of this project, and Python 2.7 parses it: a version that is too old is to be told, not to fail.
"""

import os
import sys

VERSIONS = ((3, 11), (3, 14))  # from, and below: `requires-python` in pyproject.toml
GIGABYTES = 9  # 6 of packages, 1 while pip unpacks them, 2 for what the default configuration builds


def python_problem(version):
    """Why this version of Python does not do, in a sentence or two; empty where it does."""
    if VERSIONS[0] <= tuple(version[:2]) < VERSIONS[1]:
        return ""
    return (
        "Python {}.{} cannot run repnets, which needs 3.11, 3.12 or 3.13. Ubuntu 22.04 and JetPack 6 have 3.10: "
        "install a newer one beside it (`uv python install 3.12`, or apt's deadsnakes PPA), then: "
        "make run PYTHON=python3.12"
    ).format(*version)


def space_problem(folder, free_bytes):
    """Why there is not enough room, in a sentence or two; empty where there is."""
    if free_bytes >= GIGABYTES * 10**9:
        return ""
    return (
        "{} has {:.1f} GB free, and torch, the exporters and what is built take {}. Make room, or put the environment "
        "elsewhere: make run VENV=/disk/venv"
    ).format(folder, free_bytes / 1e9, GIGABYTES)


def main(folder):
    """Look at this Python, and at the disk of an absolute path. Exit code 0 where all is well, 2 where not."""
    problem = python_problem(sys.version_info)
    if not problem:
        while not os.path.isdir(folder):  # it is made later
            folder = os.path.dirname(folder)
        there = os.statvfs(folder)
        problem = space_problem(folder, there.f_bavail * there.f_frsize)
    if problem:
        sys.stderr.write("error: " + problem + "\n")
    return 2 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
