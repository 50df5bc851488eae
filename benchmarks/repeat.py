"""Are the intervals of a benchmark honest? The same files benched again and again must agree with themselves.

    python benchmarks/repeat.py targets/executorch/toy/branched.pte targets/executorch/toy/fused.pte --times 6

Each time is a whole measurement as `bench` makes it, in fresh processes. Printed is each time's speed-up of the second
file over the first with its 95 % interval, and how many pairs of the intervals overlap. Of intervals that hold the
truth 95 times in 100, nearly all pairs do; of intervals that only know one process, many do not.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.backends.worker import client
from pipeline.benchmark import conditions, inputs, interleaved, statistics, timing


def main() -> int:
    """Measure, print a line a time and the count, write a JSON file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="an exported file")
    parser.add_argument("after", type=Path, help="another one, of the same input shape")
    parser.add_argument("--backend", default="executorch", help="what runs both; default: %(default)s")
    parser.add_argument("--shape", type=int, nargs=4, default=[1, 3, 32, 32], metavar="N", help="default: 1 3 32 32")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--times", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()

    times = [once(options) for _ in range(options.times)]
    pairs = list(itertools.combinations([one["speedup"] for one in times], 2))
    overlap = sum(max(one["low"], other["low"]) <= min(one["high"], other["high"]) for one, other in pairs)
    print(f"{overlap} of {len(pairs)} pairs of intervals overlap")
    if options.output:
        options.output.write_text(
            json.dumps({"times": times, "pairs": len(pairs), "overlap": overlap}, indent=2) + "\n"
        )
    return 0


def once(options: argparse.Namespace) -> dict[str, object]:
    """One benchmark of both files."""
    image = inputs.random_image(options.shape)
    jobs = {name: client.Job(options.backend, getattr(options, name)) for name in ("before", "after")}
    start = conditions.snapshot()
    timed = timing.time_in_turn(jobs, image, options.threads, until=interleaved.Until())
    about = conditions.describe(options.threads, (), start, conditions.snapshot())
    samples = timed.timing.samples_ms
    gained = statistics.speedup(samples["before"], samples["after"])
    busy = f", {about['other_load']} cores used by others" if about["busy"] else ""
    print(
        f"{gained['median']:.3f} ({gained['low']:.3f} to {gained['high']:.3f}), launches {gained['by_launch']}{busy}",
        flush=True,
    )
    return {"speedup": gained, "conditions": about}


if __name__ == "__main__":
    sys.exit(main())
