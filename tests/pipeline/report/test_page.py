"""report.html: one file that shows everything, asks for nothing, and runs nothing that comes from a document."""

import os
import re
import shutil
from pathlib import Path

import pytest

from pipeline.artifacts import digests
from pipeline.artifacts.bench_result import BenchResult
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config.stages import NoSettings
from pipeline.errors import InputError
from pipeline.report.page.sections.tradeoffs import front
from pipeline.stages import report
from tests.fixtures.documents import write_completed

IMAGE, SCRIPT = "<img src=x onerror=hacked=1>", "</script><script>hacked=1</script>"
FUSED = {"fused": "11"}
DOCUMENTS = {"benches": "bench", "profiles": "profile", "manifests": "manifest", "checks": "check"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>'


def write_tree(root: Path, model: str) -> dict[str, list[Path]]:
    """The documents of a model on two targets, one of them without its runtime, as options of the stage.

    The model's name, a layer, a class and the reason of the other target are HTML.
    """
    of_model, phone, tablet = root / "artifacts" / model, root / "phone" / model, root / "tablet" / model
    for folder in (of_model, phone, tablet):
        folder.mkdir(parents=True)
    accuracy = {"branched": 0.98, "fused": 0.97, "file": 0.96}
    sizes = {"before": 1000, "after": 900}
    region = {f"{what}_{when}": value for what in ("macs", "parameters") for when, value in sizes.items()}
    refusal = {"node": "conv2d_9", "path": SCRIPT, "reason": "its batch norm is in training mode"}
    snr = {"snr_db": 40.0}
    layer = {"name": SCRIPT, "weight": snr, "input": snr, "logit_error": {"weight": 1e-4, "input": 1e-4, "both": 2e-4}}
    write_completed(
        of_model / "fuse.json",
        FuseResult,
        {
            "subjects": FUSED, "regions": [{"name": SCRIPT, "kind": "Conv2d", **region}], "refusals": [refusal],
            "forecast": {"logit_error": 2e-4, "layers": [layer]},
        },
    )  # fmt: skip
    errors = {"random 32 x 32": {"branched": 2e-7, "fused": 1e-7}}
    write_completed(
        of_model / "verify.json",
        VerifyResult,
        {
            "subjects": FUSED, "accuracy": {"branched": 0.98, "fused": 0.97}, "images": 359, "idempotent": True,
            "float64": {"tolerance": 1e-9, "max_relative_error": {"random 32 x 32": 0.0}},
            "float32": {"slack": 2.0, "tolerance": 5e-5, "relative_error": errors},
            "preprocessing": {"classes": ["<b>"]},
        },
    )  # fmt: skip
    steps = [{"name": "naive", "how": SCRIPT, "error": 0.1, "accuracy": 0.5, "kept": True}]
    write_completed(
        of_model / "quantize.json",
        QuantizeResult,
        {
            "subjects": FUSED,
            "steps": steps,
            "sensitivity": {SCRIPT: 1e-3},
            "accuracy": {"fused": 0.97, "quantized": 0.9},
        },
    )
    epoch = (
        '{"epoch": 1, "learning_rate": 0.1, "loss": 2.5, "val_accuracy": 0.4, "images_per_second": 9, "seconds": 1}\n'
    )
    (of_model / "metrics.jsonl").write_text(epoch)
    (of_model / "structure.svg").write_text(SVG)
    found = {name: [] for name in DOCUMENTS}
    for folder, status in ((phone, "ok"), (tablet, "unavailable")):
        about = {"target": folder.parent.name, "model": model, "precision": "fp32"}
        files = {form: {"files": {f"{form}.pte": {"size_bytes": 10**6}}} for form in ("fused", "branched")}
        lineage = {"accuracy": {"branched": 0.98, "fused": 0.97}}
        write_completed(folder / "manifest.json", Manifest, {**about, "forms": files, "lineage": lineage})
        gate = {"tolerance": 1e-5, "max_relative_error": 1e-6}
        forms = {form: {"converter": gate, "precision": gate, "accuracy": 0.96} for form in files}
        subjects = {"manifest": digests.digest(folder / "manifest.json")}
        write_completed(
            folder / "check.json", CheckResult, {"subjects": subjects, "accuracy": accuracy, "forms": forms}
        )
        percentiles = {"n": 9, "launches": 3, "min": 0.9, "p50": 1.0, "p90": 1.5, "p99": 3.0}
        timed = {form: {"latency_ms": percentiles | {"interval": {"p50": [0.9, 1.1]}}} for form in files}
        run = {"threads": 1, "forms": timed, "conditions": {"device": "board", "cpu": SCRIPT}}
        is_ok = status == "ok"
        write_completed(
            folder / "bench.json",
            BenchResult,
            {
                **about, "status": status, "reason": None if is_ok else SCRIPT, "remedy": None if is_ok else IMAGE,
                "subjects": FUSED, "accuracy": accuracy, "forms": {form: {"size_bytes": 10**6} for form in files},
                "runs": [run] if is_ok else [],
            },
        )  # fmt: skip
        operation = {"layer": SCRIPT, "name": "conv", "kind": "convolution", "ms": 0.5, "share": 1.0}
        told = {"threads": 1, "operations": [operation]} if is_ok else {"reason": IMAGE}
        bound = {"bench": digests.digest(folder / "bench.json")}
        write_completed(folder / "profile.json", ProfileResult, {**about, "status": status, "subjects": bound, **told})
        for name, places in found.items():
            places.append(folder / f"{DOCUMENTS[name]}.json")
    return found | {
        "fuses": [of_model / "fuse.json"],
        "verifies": [of_model / "verify.json"],
        "quantizes": [of_model / "quantize.json"],
        "metrics": [of_model / "metrics.jsonl"],
        "pictures": [of_model / "structure.svg"],
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, dict[str, list[Path]]]:
    """A folder with report.html, and the options that it was made with."""
    root = tmp_path_factory.mktemp("report")
    options = write_tree(root, IMAGE)
    report.run(NoSettings(), **options, output=root / "report.md", page=root / "report.html")
    return root, options


def test_the_page_is_one_file_and_the_same_for_the_same_documents(tree):
    root, options = tree
    content = (root / "report.html").read_bytes()
    assert 500_000 < len(content) < 5_000_000
    report.run(NoSettings(), **options, output=root / "again.md", page=root / "again.html")
    assert (root / "again.html").read_bytes() == content


def test_nothing_of_a_document_is_markup(tree):
    text = (tree[0] / "report.html").read_text()
    assert "hacked=1" in text
    assert "<script>hacked" not in text and "<img src=x" not in text and "<b>" not in text
    assert len(re.findall("<script", text)) == 3  # the specifications, the library and the page's own


def test_every_table_has_a_caption_and_scopes(tree):
    text = (tree[0] / "report.html").read_text().partition("<script")[0]  # the library has tables of its own
    tables = re.findall("<table>.*?</table>", text, re.DOTALL)
    assert len(tables) > 10
    for table in tables:
        assert "<caption>" in table and re.search(r"<th(?=[ >])(?![^>]*scope)", table) is None


def test_documents_of_other_files_are_refused(tree, tmp_path):
    options = write_tree(tmp_path, "toy")
    write_completed(options["manifests"][0], Manifest, {"model": "toy", "forms": {"fused": {"files": {"a": {}}}}})
    with pytest.raises(InputError, match="is of another manifest"):
        report.run(NoSettings(), **options, output=tmp_path / "report.md", page=tmp_path / "report.html")


def test_the_front_is_what_nothing_beats():
    points = [
        {"group": "", "cost": cost, "score": score, "name": name}
        for name, cost, score in (("a", 1, 5), ("worse", 2, 4), ("b", 3, 7), ("same, dearer", 4, 7), ("tie", 1, 5))
    ]
    assert [one["name"] for one in front(points)] == ["a", "b"]


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # root has no sandbox in containers
        launched = started.chromium.launch(executable_path=program, args=["--no-sandbox"] * (os.getuid() == 0))
        yield launched
        launched.close()


@pytest.mark.parametrize("width, scheme", [(360, "dark"), (1280, "light")])
def test_in_a_browser(tree, browser, width, scheme):
    """Every chart is drawn, nothing is asked for, nothing foreign runs, and the keyboard reaches the controls."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    told, requests = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = (tree[0] / "report.html").as_uri()
    page.goto(address)
    page.wait_for_selector("html[data-drawn]")
    assert told == [] and [url for url in requests if not url.startswith("data:")] == [address]
    assert page.evaluate("window.hacked") is None
    charts = page.locator("[data-chart]")
    assert charts.count() == page.locator("[data-chart] svg").count() >= 8
    for place in range(charts.count()):
        assert charts.nth(place).locator("svg [aria-roledescription$=mark], svg .role-mark path").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.zoom"))
        if reached[-1] == "theme":
            before = background()
            page.keyboard.press("Enter")
            assert background() != before
        if reached[-1] == "in":
            page.keyboard.press("Enter")
            assert page.locator("output").first.text_content() == "125 %"
    assert {"theme", "in", "out", "fit"} <= set(reached)
    assert told == []
    page.close()
