"""`repnets store`: what the store holds, whether it is whole, and making room."""

import time
from collections import defaultdict
from collections.abc import Sequence

from pipeline.artifacts import store_upkeep as upkeep
from pipeline.artifacts.store import root
from pipeline.artifacts.store_upkeep import Entry
from pipeline.errors import GateError, InputError
from pipeline.report.text import aligned

ACTIONS = ("list", "prune", "verify")

HELP = """\
Look after the store, in which the results of every stage are kept by all that they depend on ($REPNETS_STORE). Whatever
is deleted here is built again when it is next wanted; no file of a project is touched.

  list      how many results each stage has, and their size (the default)
  prune     delete the results that were not used for longest: --older-than 30d, --to 5GB, or both
  verify    read everything, and delete what no longer has the content that was put there

A result counts as used when it is built or taken. Disks that are mounted without times of reading (noatime) know only
the first. Results of other users are left alone.

Exit code 0: done. 1: verify found damage.

examples:
  repnets store
  repnets store prune --older-than 30d --dry-run
  repnets store prune --to 5GB
  repnets store verify
"""


def store(
    action: str = "list", *, older_than: float | None = None, to: int | None = None, dry_run: bool = False
) -> None:
    """List, prune or verify the store.

    Args:
        action: one of `ACTIONS`.
        older_than: of prune: seconds since a result was last used.
        to: of prune: bytes that are to be left, at most.
        dry_run: of prune: delete nothing.

    Raises:
        InputError: options and action do not fit.
        GateError: verify found damage.
    """
    if action != "prune" and (older_than is not None or to is not None or dry_run):
        raise InputError("--older-than, --to and --dry-run are of `repnets store prune`.")
    found = upkeep.entries()
    if action == "list":
        _list(found)
    elif action == "verify":
        _verify(found)
    else:
        _prune(found, older_than, to, dry_run)


def _list(found: Sequence[Entry]) -> None:
    print(f"store: {root()}")
    if not found:
        print("It is empty.")
        return
    by_stage: dict[str, list[Entry]] = defaultdict(list)
    for entry in found:
        by_stage[entry.stage].append(entry)
    rows = [
        (stage, f"{len(some):,}", _size(some), _ago(some[0].used), _ago(some[-1].used))
        for stage, some in sorted(by_stage.items(), key=lambda item: -sum(one.size_bytes for one in item[1]))
    ]
    total = ("all", f"{len(found):,}", _size(found), _ago(found[0].used), _ago(found[-1].used))
    print(aligned([("stage", "results", "size", "least recent", "most recent"), *rows, total], figures=True))
    if left := upkeep.unfinished_bytes():
        print(f"{left / 1e6:,.1f} MB are of runs that did not end; the next attempt goes on from there.")
    if others := sum(not entry.is_mine for entry in found):
        print(f"{others:,} results are of other users.")


def _prune(found: Sequence[Entry], older_than: float | None, to: int | None, dry_run: bool) -> None:
    if older_than is None and to is None:
        raise InputError("say what is to go: --older-than 30d, --to 5GB, or both.")
    chosen = upkeep.surplus(found, size_bytes=to, unused_seconds=older_than)
    if dry_run:
        print(f"would delete {len(chosen):,} of {len(found):,} results, {_size(chosen)}")
        return
    gone = [entry for entry in chosen if upkeep.remove(entry)]
    print(f"deleted {len(gone):,} of {len(found):,} results, {_size(gone)}; {_size(set(found) - set(gone))} are left")
    if busy := len(chosen) - len(gone):
        print(f"{busy:,} were left, since runs are building them.")


def _verify(found: Sequence[Entry]) -> None:
    broken = [(entry, parts) for entry in found if entry.is_mine and (parts := upkeep.damaged(entry))]
    for entry, parts in broken:
        print(f"damaged: {entry.stage}, {entry.key[:12]}: {', '.join(parts)}; deleted")
        upkeep.remove(entry)
    mine = sum(entry.is_mine for entry in found)
    if broken:
        raise GateError(
            f"{len(broken):,} of {mine:,} results were damaged. They are built again when they are wanted. If nobody "
            "changed them, the disk may be failing."
        )
    print(f"{mine:,} results, {_size(found)}: each has the content that was put there")


def _size(some: Sequence[Entry] | set[Entry]) -> str:
    return f"{sum(entry.size_bytes for entry in some) / 1e6:,.1f} MB"


def _ago(when: float) -> str:
    hours = max(0.0, time.time() - when) / 3600
    return f"{hours / 24:,.0f} days ago" if hours >= 48 else f"{hours:.0f} h ago" if hours >= 1 else "within the hour"
