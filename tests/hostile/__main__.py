"""Damage small real files at random, and hold what our readers make of them to one rule.

    python -m tests.hostile --count 1000                   a thousand of each reader, of numbers 0 to 999
    python -m tests.hostile --count 200 --reader onnx      of one reader
    python -m tests.hostile --reader onnx --number 17      one case; its files stay in --work

The rule: a reader answers, or refuses with an error of the project, in one paragraph under 2 kB, within 10 s and 1 GiB;
it changes nothing outside of its folder and starts no process. The exit code is 1 where one does anything else.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from tests.hostile import harness
from tests.hostile.child import OUTCOMES, WRONG
from tests.hostile.readers import READERS

_SHOWN = 8  # numbers of each kind of failure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="cases of each reader; default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first; default: %(default)s")
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one; may be given again")
    parser.add_argument("--number", type=int, help="only this case of each reader")
    parser.add_argument("--work", type=Path, help="folder for the files; default: a temporary one")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.count) if options.number is None else [options.number]
    jobs = [(reader, number) for reader in options.reader or READERS for number in numbers]
    with tempfile.TemporaryDirectory(prefix="repnets-hostile-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        cases, seconds, begin = [], Counter(), time.monotonic()
        for case in tqdm(harness.run(work, jobs), total=len(jobs), unit="case", smoothing=0):
            cases.append(case)
            seconds[case.reader] += time.monotonic() - begin
            begin = time.monotonic()
            if case.outcome == WRONG:
                tqdm.write(f"{case.reader} {case.number}: {case.why}")
    print(_summary(cases, seconds))
    return 1 if any(case.outcome == WRONG for case in cases) else 0


def _summary(cases: list[harness.Case], seconds: Counter[str]) -> str:
    kinds: dict[str, list[harness.Case]] = {}
    for case in cases:
        if case.outcome == WRONG:
            kinds.setdefault(
                f"{case.reader}: {case.why.partition(': ')[0]} {case.why.rpartition(' at ')[2][:150]}", []
            ).append(case)
    lines = []
    for failed in sorted(kinds.values(), key=len, reverse=True):
        numbers = " ".join(str(case.number) for case in failed[:_SHOWN])
        lines.append(f"WRONG {len(failed)}: {failed[0].reader}: {failed[0].why}\n    numbers {numbers}")
    counts = Counter((case.reader, case.outcome) for case in cases)
    counts = Counter((case.reader, case.outcome) for case in cases)
    rows = {reader: [counts[reader, outcome] for outcome in OUTCOMES] for reader in seconds}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines.append(f"{'':12}" + "".join(f"{title:>15}" for title in (*OUTCOMES, "seconds")))
    for reader, row in rows.items():
        took = seconds[reader] or seconds.total()
        lines.append(f"{reader:12}" + "".join(f"{count:15,}" for count in row) + f"{took:15.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
