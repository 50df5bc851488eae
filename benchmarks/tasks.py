"""The five projects of examples/, built as a user builds them: the metric at every hop, and how long each took.

    python benchmarks/tasks.py                                   all; some 15 minutes on two cores
    python benchmarks/tasks.py --examples segmentation detection
    python benchmarks/tasks.py --output tasks.json > tasks.md

Each is copied to a folder of its own and built by `snakemake --cores 2 all` with an empty store, so its time is that
from nothing. The figures are those of its bench.json: the branched network as it was trained, the fused one, and each
file as the runtime at hand computes it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.artifacts import documents, metric
from pipeline.artifacts.bench_result import BenchResult
from pipeline.benchmark import conditions
from pipeline.report.text import table

PROJECT = Path(__file__).resolve().parents[1]
EXAMPLES = tuple(sorted(path.parent.name for path in PROJECT.glob("examples/*/config.yaml")))
TARGETS = ("executorch", "coreml", "tensorrt")
_PACKAGES = ("torch", "executorch", "coremltools", "onnxruntime")


def main(argv: Sequence[str] | None = None) -> int:
    """Build each example, print the table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--examples", nargs="+", choices=EXAMPLES, default=EXAMPLES, metavar="NAME", help="default: all"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args(argv)
    before, found = conditions.snapshot(), {}
    for number, name in enumerate(options.examples, start=1):
        found[name] = built(name)
        print(f"[{number}/{len(options.examples)}] {name}: {found[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    about = conditions.describe(os.cpu_count() or 1, _PACKAGES, before, conditions.snapshot())
    if options.output:
        options.output.write_text(json.dumps({"conditions": about, "examples": found}, indent=2) + "\n")
    print(text(found))
    return 1 if any(one["failed"] for one in found.values()) else 0


def built(name: str) -> dict[str, Any]:
    """What came of an example: its metric at every hop by the target, the seconds it took, and whether it failed."""
    with tempfile.TemporaryDirectory(prefix="repnets-") as place:
        folder = Path(place) / name
        shutil.copytree(
            PROJECT / "examples" / name, folder, ignore=shutil.ignore_patterns("artifacts", "logs", ".snakemake")
        )
        environment = {**os.environ, "REPNETS_STORE": f"{place}/store", "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile"), "--cores", "2", "all"]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        results = [documents.read(BenchResult, path) for path in sorted(folder.glob("targets/*/*/bench.json"))]
    hops: dict[str, dict[str, float | None]] = {}
    for one in results:
        accuracy = one.accuracy
        hops[one.target] = {form: getattr(accuracy, form) for form in ("branched", "fused", "file")}
    return {
        "network": results[0].model if results else None,
        "metric": results[0].accuracy.metric if results else None,
        "seconds": seconds,
        "failed": done.stderr[-2000:] if done.returncode else None,
        "targets": hops,
    }


def text(found: dict[str, Any]) -> str:
    """The table, in Markdown: a row an example."""
    rows = []
    for name, one in found.items():
        kind, targets = one["metric"], one["targets"]
        first = next(iter(targets.values()), {})

        def shown(value: float | None, kind: str | None = kind) -> str:
            return "-" if value is None or kind is None else metric.number(value, kind)

        rows.append(
            {
                "example": name,
                "network": one["network"] or "failed",
                "metric": f"{metric.plain(kind)}, {metric.unit_of(kind)}" if kind else "-",
                "branched": shown(first.get("branched")),
                "fused": shown(first.get("fused")),
                **{
                    target: shown(targets.get(target, {}).get("file"))
                    for base in TARGETS
                    for target in (base, f"{base}-int8")
                },
                "s": f"{one['seconds']:.0f}",
            }
        )
    return table(("example", "network", "metric"), rows)


if __name__ == "__main__":
    sys.exit(main())
