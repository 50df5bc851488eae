"""Seconds that each exporter takes for the fused and the branched form of a network, and where they go.

    python benchmarks/export.py                                        three networks, three backends, 64 x 64
    python benchmarks/export.py --networks mobileone_s0 --backends executorch --rounds 3 --size 224
    python benchmarks/export.py --networks mobileone_s0 --backends executorch --profile 25

program    torch.export: the module becomes a graph; the same for every backend.
export     what the backend's exporter makes of it, up to the file on disk.

Each export runs in a process of its own, as a job of the pipeline does; all of them once a round, in turn. An export
of a single convolution comes first, so that no import is timed. `CPU s` is what the process itself used: where others
want the machine as well, it moves less than the time that passed.

The row `branched, pairs left` is the export without pipeline.models.passes.fold_batch_norms, which folds what
XNNPACK's lowering would fold by itself.
The digest tells files of one content apart; tests hold that these two differ in XNNPACK's debug
handles alone.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import backends
from pipeline.artifacts import digests
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.benchmark import conditions

NETWORKS = ("toy", "repvgg_a0", "mobileone_s0")
BACKENDS = {"coreml": "fp16", "executorch": "fp32", "onnx": "fp32"}
FORMS = ("fused", "branched")
PAIRS_LEFT = "branched, pairs left"
PACKAGES = ("torch", "coremltools", "executorch", "onnx", "onnxscript")
CLASSES = tuple(f"class {index}" for index in range(10))


def main() -> int:
    """Time every export, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="of `repnets models`")
    parser.add_argument("--backends", nargs="+", default=tuple(BACKENDS), choices=tuple(BACKENDS))
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="every export once in each; default: %(default)s")
    parser.add_argument("--profile", type=int, metavar="LINES", help="print the slowest functions of each export")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()

    wanted = [
        (network, backend, form)
        for network in options.networks
        for backend in options.backends
        for form in (*FORMS, *([PAIRS_LEFT] if backend == "executorch" else []))
    ]
    from tqdm import tqdm

    before = conditions.snapshot()
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {one: [] for one in wanted}
    with tqdm(total=options.rounds * len(wanted), unit="export", disable=None) as bar:
        for _ in range(options.rounds):
            for one in wanted:
                bar.set_postfix_str(", ".join(one))
                found[one].append(alone(*one, options.size, options.profile))
                bar.update()
    about = conditions.describe(1, PACKAGES, before, conditions.snapshot())
    rows = [{"network": n, "backend": b, "form": f, "rounds": taken} for (n, b, f), taken in found.items()]
    result = {"conditions": about, "size": options.size, "exports": rows}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))
    return 0


def alone(*arguments: object) -> Any:
    """One export in a fresh process, whose imports and caches are its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(export, *arguments).result()


# In a process of its own


def export(name: str, backend_name: str, form: str, size: int, lines: int | None) -> dict[str, Any]:
    """Seconds, CPU seconds and digest of one export, and its operations."""
    import torch

    import repnets

    torch.set_num_threads(1)
    backend = backends.load(backend_name)
    if form == PAIRS_LEFT:
        backend.fold_pairs = lambda program: program
    shape = (1, 3, size, size)
    spec = ExportSpec(BACKENDS[backend_name], shape, Preprocessing(size, (0.5,) * 3, (0.25,) * 3, CLASSES))
    model = repnets.create_model(name, num_classes=len(CLASSES)).eval()
    spread(model)
    if form == "fused":
        model = repnets.fuse(model, torch.zeros(shape)).module
    with tempfile.TemporaryDirectory(prefix="repnets-") as folder:
        files = [Path(folder, name) for name in backend.file_names(["network"])]
        small = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
        backend.export(torch.export.export(small, (torch.zeros(shape),)), files, spec)
        start, used = time.perf_counter(), time.process_time()
        program = torch.export.export(model, (torch.zeros(shape),))
        middle = time.perf_counter()
        with_profile(lines, lambda: backend.export(program, files, spec))
        return {
            "program_seconds": middle - start,
            "export_seconds": time.perf_counter() - middle,
            "cpu_seconds": time.process_time() - used,
            "nodes": len(program.graph.nodes),
            "census": backend.census(files[0]),
            "digest": digests.digest(files[0]),
        }


def spread(model: Any) -> None:
    """Move the batch norms away from where they begin, the same way every time."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.3)


def with_profile(lines: int | None, function: Any) -> None:
    """Call it; print the functions that took longest, their callees included, where that is asked for."""
    if lines is None:
        function()
        return
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(function)
    pstats.Stats(profile).strip_dirs().sort_stats("cumulative").print_stats(lines)


# What is printed


def report(result: dict[str, Any]) -> str:
    """The conditions and a markdown table, a line for each export."""
    about = result["conditions"]
    versions = ", ".join(f"{package} {about['versions'][package]}" for package in PACKAGES)
    busy = f"; {about['warning']}" if about["warning"] else ""
    head = ("network", "backend", "form", "nodes", "program s", "export s", "CPU s", "operations", "digest")
    rows = []
    for one in result["exports"]:
        first = one["rounds"][0]
        seconds = [middle(one["rounds"], key) for key in ("program_seconds", "export_seconds", "cpu_seconds")]
        operations = f"{first['census']['total']}"
        identity = [one["network"], one["backend"], one["form"]]
        rows.append([*identity, f"{first['nodes']}", *seconds, operations, first["digest"][:12]])
    return (
        f"{about['cpu']}, {about['cores']} cores, one thread; {versions}; load average {about['load_average_before']} "
        f"before and {about['load_average_after']} after{busy}. {result['size']} x {result['size']}, batch 1, "
        f"n = {len(result['exports'][0]['rounds'])}, medians.\n\n{table(head, rows)}"
    )


def middle(rounds: Sequence[dict[str, Any]], key: str) -> str:
    return f"{statistics.median(one[key] for one in rounds):.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its first three columns aligned left and the others right."""
    lines = [[*head], [*["---"] * 3, *["---:"] * (len(head) - 3)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
