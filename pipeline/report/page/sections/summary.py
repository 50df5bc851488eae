"""What was gained: a headline for each model, and a row for each target."""

from pipeline.artifacts.bench_result import BenchResult
from pipeline.artifacts.metric import NONE, plain, shown
from pipeline.report import figures, tables
from pipeline.report.page import gates
from pipeline.report.page.built import Built, Exported, Model
from pipeline.report.page.content import Facts, Section, Table

_TEXT = (
    "branched is the network as it was trained. fused is the same network with its branches folded into single "
    "convolutions. file is what a device runs: the fused network, exported, or for int8 the quantized one. ms is the "
    "median latency of an inference. The speed-up is how many times as fast the file is as its baseline on the same "
    "runtime, with a 95 % interval over fresh launches. Nothing is written under a target that its own runtime did not "
    "measure."
)


def failed(built: Built) -> Section | None:
    """What was not built, and why."""
    if built.failed is None:
        return None
    rows = [
        {
            "job": job.what,
            "model": job.model or figures.NONE,
            "target": job.target or figures.NONE,
            "reason": job.reason,
            "log": job.log,
        }
        for job in built.failed.jobs
    ]
    text = "These jobs failed, and what depends on them was not built. All else was, and is below."
    table = Table("Jobs that failed in the last run", rows, left=("model", "target", "reason", "log"))
    return Section("failed", "Failed", [text], tables=[table])


def section(built: Built) -> Section:
    """Headlines and the main table."""
    rows = tables.without_single_threads([row for result in built.results for row in _rows(built, result)])
    return Section(
        "summary",
        "Summary",
        [_TEXT],
        facts=[_facts(name, model, list(built.of(name)), built) for name, model in built.models.items()],
        tables=[Table("What ships for each model and target", rows, left=("target", "over", "status", "precision"))],
    )


def proofs(built: Built) -> Section:
    """Every gate with its value."""
    found = []
    for name, model in built.models.items():
        rows = [
            {
                "step": gate.step,
                "gate": gate.name,
                "found": gate.found,
                "allowed": gate.allowed,
                "passed": "not checked" if gate.passed is None else "yes" if gate.passed else "NO",
            }
            for gate in _gates(model, list(built.of(name)))
        ]
        caption = f"Gates of {name}. Errors are relative to the largest logit, those of weights to the largest weight"
        found.append(Table(caption, rows, left=("gate", "found", "allowed", "passed")))
    text = "Each step is compared with the one before it; a gate that fails stops the build. See docs/proof.md."
    return Section("gates", "Gates", [text], tables=found)


def _facts(name: str, model: Model, files: list[Exported], built: Built) -> Facts:
    before, after, accuracy = model.fuse.before, model.fuse.after, model.verify.accuracy
    told: list[tuple[str, str]] = []
    if accuracy.metric != NONE:
        score = shown(accuracy.fused, accuracy.metric)
        if accuracy.branched is not None:
            score = f"{shown(accuracy.branched, accuracy.metric)} to {score}"
        told.append((f"{plain(accuracy.metric)}, branched to fused", score))
    best = _fastest(name, built)
    if best:
        told.append((f"best speed-up, {best.target} over {_baseline(best)}", figures.speedup(best.runs[0])))
    sizes = [(one.size_bytes(one.manifest.shipped), one.label) for one in files if one.bench]
    if sizes:
        size, target = min(sizes)
        told.append((f"smallest file, {target}", f"{figures.megabytes(size)} MB"))
    told += [
        ("convolutions", f"{before.convolutions} to {after.convolutions}"),
        ("parameters", f"{before.parameters / 1e6:.2f} M to {after.parameters / 1e6:.2f} M"),
        ("multiply-accumulates", f"{before.macs / 1e6:,.1f} M to {after.macs / 1e6:,.1f} M"),
        ("gates passed", gates.passed(_gates(model, files))),
    ]
    return Facts(name, told)


def _rows(built: Built, result: BenchResult) -> list[dict[str, str]]:
    files = [one for one in built.exports if one.bench is result]
    score = gates.passed([gate for one in files for gate in gates.of_file(one.label, one.check)]).partition(" (")[0]
    first = {"model": result.model, "target": result.target, "precision": result.precision}
    last = {"over": _baseline(result), "gates passed": score}
    return [first | row | last for row in tables.benchmark_rows(result)]


def _gates(model: Model, files: list[Exported]) -> list[gates.Gate]:
    found = gates.of_fold(model.verify) + (gates.of_int8(model.quantize) if model.quantize else [])
    return found + [gate for one in files for gate in gates.of_file(one.label, one.check)]


def _fastest(model: str, built: Built) -> BenchResult | None:
    measured = [one for one in built.results if one.model == model and one.speedup]
    return max(measured, key=lambda one: one.speedup.median, default=None)


def _baseline(result: BenchResult) -> str:
    return next(iter(list(result.forms)[1:]), figures.NONE)
