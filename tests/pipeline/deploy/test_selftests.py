"""The self-test of a bundle, run by an interpreter of its own: what it finds, and that it always ends.

Most bundles here hold a network of three lines in the place of a runtime, which behaves as runtimes do when they fail.
"""

import ast
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.deploy import bundle_file, templates
from tests.fixtures.documents import bundle_manifest

SHIPPED = Path(templates.__file__).with_name("shipped")
PROJECT = SHIPPED.parents[2]
PYTHON = sorted({*SHIPPED.glob("*.py"), *PROJECT.glob("pipeline/backends/*/shipped/*.py")})
RIGHT = "return [2.0 * value for value in struct.unpack('<4f', values)]"
NETWORK = """
import os, struct, sys, time
class Unavailable(Exception): pass
class Network:
    runtime, version = "a stand-in", "1.0"
    def __init__(self, folder):
        {opening}
    def __call__(self, values):
        {answer}
"""


def packed(opening="pass", answer=RIGHT, want=(2.0, 4.0, 6.0, 8.0), limit=60):
    """The members and bundle.json of a bundle whose network doubles four numbers."""
    golden = [{"input": "in.bin", "output": "out.bin", "labels": [1]}]
    manifest = bundle_manifest(
        target="phone", backend="none", file="predict.py", tolerance=1e-4, time_limit_s=limit, golden=golden
    )
    members = {
        "selftest.py": (SHIPPED / "selftest.py").read_bytes(),
        "predict.py": NETWORK.format(opening=opening, answer=answer).encode(),
        "in.bin": struct.pack("<4f", 1, 2, 3, 4),
        "out.bin": struct.pack("<4f", *want),
    }
    return members, manifest


def installed(tmp_path, *made):
    folder = tmp_path / "installed"
    bundle_file.open_bundle(bundle_file.write(tmp_path, *made)).unpack(folder)
    return folder


def run_selftest(folder, *words, python=(sys.executable,), **environment):
    """Exit code of the self-test, and its last line; it leaves nothing behind."""
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    done = subprocess.run(
        [*python, folder / "selftest.py", *words],
        capture_output=True, text=True, cwd="/", env={**os.environ, "TMPDIR": str(scratch), **environment},
    )  # fmt: skip
    assert done.stdout, done.stderr
    assert list(scratch.iterdir()) == []
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"status", "reason", "max_error", "tolerance", "images", "runtime", "version"}
    assert done.returncode == {"ok": 0, "failed": 1, "unavailable": 3}[told["status"]]
    return told


def test_it_holds(tmp_path):
    told = run_selftest(installed(tmp_path, *packed()))
    assert told == {
        "status": "ok", "reason": None, "max_error": 0.0, "tolerance": 1e-4, "images": 1, "runtime": "a stand-in",
        "version": "1.0",
    }  # fmt: skip


def test_without_site_packages_and_the_script_s_folder_too(tmp_path):
    assert run_selftest(installed(tmp_path, *packed()), python=(sys.executable, "-I", "-S"))["status"] == "ok"


@pytest.mark.parametrize("name", ["predict.py", "in.bin", "out.bin", "selftest.py"])
def test_a_flipped_byte_is_told_by_the_file_and_nothing_runs(tmp_path, name):
    folder = installed(tmp_path, *packed(opening=f"open({str(tmp_path / 'ran')!r}, 'w')"))
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1 if name.endswith(".bin") else ord("\n") ^ ord(" ")
    (folder / name).write_bytes(content)
    told = run_selftest(folder)
    assert told["status"] == "failed" and f"{name} does not have the sha256" in told["reason"]
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path):
    folder = installed(tmp_path, *packed())
    (folder / "in.bin").unlink()
    assert run_selftest(folder)["reason"].startswith("in.bin is missing")


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('"tolerance": 0.0001', '"tolerance": 0.5001', "does not have the digest"),
        ('"schema"', "", "cannot be read"),
        ('"files"', '"filed"', "cannot be read"),
    ],
)
def test_a_bundle_json_that_was_changed_is_refused(tmp_path, old, new, said):
    folder = installed(tmp_path, *packed())
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace(old, new))
    told = run_selftest(folder)
    assert told["status"] == "failed" and said in told["reason"]


def test_other_numbers_fail_with_the_worst_of_them(tmp_path):
    told = run_selftest(installed(tmp_path, *packed(want=(2.0, 4.0, 6.0, 8.1))))
    assert told["status"] == "failed" and told["max_error"] == pytest.approx(0.1 / 8.1, rel=1e-5)
    assert (
        told["reason"] == "value 3 of the outputs is 8 and must be 8.1: off by 1.2e-02 of the largest, tolerance 1e-04"
    )


@pytest.mark.parametrize(
    "answer, said",
    [
        ("return [2.0, float('nan'), 6.0, 8.0]", "value 1 of the outputs is nan"),
        ("return [2.0, 4.0, float('inf'), 8.0]", "value 2 of the outputs is inf"),
        ("return [2.0, 4.0]", "gave 2 values in all, and must give 4"),
        ("raise RuntimeError('no kernel')", "RuntimeError: no kernel"),
        ("os.abort()", "died of signal 6"),
        ("os._exit(7)", "ended with exit code 7"),
    ],
)
def test_a_network_that_fails_is_told_of(tmp_path, answer, said):
    told = run_selftest(installed(tmp_path, *packed(answer=answer)))
    assert told["status"] == "failed" and said in told["reason"] and told["max_error"] is None


def test_what_a_dying_runtime_said_last_is_told(tmp_path):
    made = packed(answer="os.write(2, b'Illegal instruction in conv'); os.abort()")
    assert "it said last: Illegal instruction in conv" in run_selftest(installed(tmp_path, *made))["reason"]


def test_a_runtime_that_is_not_here_is_no_failure(tmp_path):
    told = run_selftest(installed(tmp_path, *packed(opening="raise Unavailable('install it')")))
    assert told["status"] == "unavailable" and told["reason"] == "install it"


def test_onnx_runtime_cannot_stand_in_where_there_is_no_onnx_file(tmp_path):
    told = run_selftest(installed(tmp_path, *packed()), "--onnxruntime")
    assert told["status"] == "unavailable" and "no ONNX file" in told["reason"]


def test_a_bundle_without_golden_images_does_not_pass(tmp_path):
    members, manifest = packed()
    told = run_selftest(installed(tmp_path, members, replace(manifest, golden=())))
    assert told["status"] == "failed" and "nothing was compared" in told["reason"]


@pytest.mark.parametrize("hang", ["time.sleep(1000)", "[None for _ in iter(int, 1)]"], ids=["waits", "computes"])
def test_a_runtime_that_hangs_is_ended(tmp_path, hang):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    made = packed(opening=f"self.alive = open({str(fifo)!r}, 'w')", answer=hang, limit=2)
    folder = installed(tmp_path, *made)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    told = run_selftest(folder)
    assert told["status"] == "failed" and "did not end within 2 s, and was ended" in told["reason"]
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b"", "the runtime's process is gone, and its end of the pipe with it"
    os.close(reader)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda one: one.name)
def test_a_self_test_that_is_killed_leaves_no_runtime_behind(tmp_path, how):
    fifo, scratch = tmp_path / "alive", tmp_path / "scratch"
    os.mkfifo(fifo)
    scratch.mkdir()
    opening = f"self.alive = open({str(fifo)!r}, 'w'); self.alive.write('x'); self.alive.flush()"
    folder = installed(tmp_path, *packed(opening=opening, answer="time.sleep(1000)", limit=900))
    with subprocess.Popen(
        [sys.executable, folder / "selftest.py"], stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)}
    ) as running:
        with fifo.open() as reader:
            assert reader.read(1) == "x"
            running.send_signal(how)
            assert reader.read(1) == "", "the runtime's process ends"
        running.wait()
    assert how == signal.SIGKILL or list(scratch.iterdir()) == []


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_is_shipped_needs_python_3_8_and_the_standard_library(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


ONLY = """
import re, sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
ALLOWED = {allowed!r}
OWNERS = packages_distributions()
FINDERS = list(sys.meta_path)
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "repnets"):  # whose editable installation names no modules
            return None
        owners = [re.sub("[-_.]+", "-", one).lower() for one in OWNERS.get(name.partition(".")[0], [])]
        if owners and not ALLOWED & set(owners):
            return None
        found = (finder.find_spec(name, path, target) for finder in FINDERS)
        return next((one for one in found if one), None)
    def invalidate_caches(self):
        pass
    def find_distributions(self, *words, **options):
        return PathFinder.find_distributions(*words, **options)
sys.meta_path[:] = [Only()]
"""


def required(*distributions):
    """The distributions and all that their metadata require here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, waiting = set(), list(distributions)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            wanted = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # of another system, or optional
            continue
        waiting += [one.name for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def only(tmp_path, *distributions):
    """An environment in which Python imports its standard library, these distributions and what they require alone."""
    folder = tmp_path / "only"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ONLY.format(allowed=required(*distributions)))
    environment = {"PYTHONPATH": str(folder)}
    for refused in ("pydantic", "repnets"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {refused}"], cwd=tmp_path, env={**os.environ, **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        assert "ModuleNotFoundError" in done.stderr, "what the runtime does not require cannot be imported"
    return environment


@pytest.mark.slow
@pytest.mark.parametrize("precision, form", [("fp32", "fused"), ("int8", "quantized")])
def test_an_executorch_bundle_by_its_runtime_alone(checked_toy, pack, tmp_path, precision, form):
    pack(checked_toy("executorch", precision, form=form)).unpack(tmp_path / "bundle")
    told = run_selftest(tmp_path / "bundle", **only(tmp_path, "executorch", "torch"))
    assert told["status"] == "ok" and told["runtime"] == "ExecuTorch" and told["images"] == 8
    assert 0 <= told["max_error"] <= told["tolerance"]
    assert told["version"] == metadata.version("executorch")


@pytest.mark.slow
@pytest.mark.parametrize("precision, form", [("fp16", "fused"), ("int8", "quantized")])
def test_a_tensorrt_bundle_s_onnx_file_by_onnx_runtime_alone(checked_toy, pack, tmp_path, precision, form):
    pack(checked_toy("tensorrt", precision, form=form, compute_capabilities=["8.6"])).unpack(tmp_path / "bundle")
    told = run_selftest(tmp_path / "bundle", "--onnxruntime", **only(tmp_path, "onnxruntime"))
    assert told["status"] == "ok" and told["runtime"] == "ONNX Runtime (stands in for TensorRT)"
    if shutil.which("trtexec") is None:
        told = run_selftest(tmp_path / "bundle")
        assert told["status"] == "unavailable" and "trtexec is not on PATH" in told["reason"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
@pytest.mark.parametrize("precision, form", [("int8", "quantized"), ("w4", "fused")])
def test_a_core_ml_bundle_is_unavailable_off_a_mac_and_its_golden_outputs_are_the_package_s(
    checked_toy, pack, tmp_path, precision, form
):
    """By the evaluator of ML programs, which reads the package as Core ML does."""
    import numpy as np

    from pipeline.backends.worker import client

    system = {"int8": "iOS17", "w4": "iOS18"}[precision]
    made = pack(checked_toy("coreml", precision, form=form, minimum_deployment_target=system))
    made.unpack(tmp_path / "bundle")
    told = run_selftest(tmp_path / "bundle", python=(sys.executable, "-I", "-S"))
    assert told["status"] == "unavailable" and "Apple's systems alone" in told["reason"]
    about = json.loads(made.read("bundle.json"))
    inputs, want = (
        np.stack([np.frombuffer(made.read(case[key]), "<f4") for case in about["golden"]])
        for key in ("input", "output")
    )
    got = client.predict("coreml", tmp_path / "bundle" / about["file"], inputs.reshape(-1, 3, 32, 32))
    assert np.abs(got - want).max() <= about["tolerance"] * np.abs(want).max()


TRTEXEC = """#!{python}
# A STAND-IN for NVIDIA's trtexec, for tests alone: it takes the same options, prints the same first and last line, and
# computes by ONNX Runtime.
import json, shutil, sys
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec")
print(json.dumps(sys.argv[1:]), file=open({log!r}, "a"))
if {hangs}:
    import time
    time.sleep(1000)
if "onnx" in options:
    shutil.copy(options["onnx"], options["saveEngine"])
if "loadEngine" in options:
    import numpy, onnxruntime
    session = onnxruntime.InferenceSession(open(options["loadEngine"], "rb").read())
    name, file = options["loadInputs"].split(":")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    image = numpy.fromfile(file, dtype="<f4").reshape(taken.shape)
    (answer,) = session.run(None, {{name: image}})
    values = ", ".join(f"{{value:.6g}}" for value in answer.ravel())
    size = "x".join(map(str, answer.shape))
    lines = ["[", '  {{ "name" : "%s"' % given.name, '  , "dimensions" : "%s"' % size, '  , "values" : [ %s ]' % values]
    open(options["exportOutput"], "w").write("\\n".join([*lines, "  }}", "]", ""]))
print("&&&& PASSED TensorRT.trtexec [TensorRT v{version}] # trtexec")
"""


@pytest.fixture
def local_trtexec_stand_in(tmp_path):
    """Puts the stand-in on PATH; a function gives that PATH, another the options that it was called with."""
    log = tmp_path / "calls"

    def put(version="100300", hangs=False):
        place = tmp_path / "bin" / "trtexec"
        place.parent.mkdir(exist_ok=True)
        place.write_text(TRTEXEC.format(python=sys.executable, version=version, log=str(log), hangs=hangs))
        place.chmod(0o755)
        return f"{place.parent}{os.pathsep}{os.environ['PATH']}"

    return put, lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_tensorrt_bundle_by_trtexec(checked_toy, pack, tmp_path, local_trtexec_stand_in):
    """By the stand-in: what is proved is how trtexec is asked and how its answer is read."""
    put, calls = local_trtexec_stand_in
    pack(checked_toy("tensorrt", "fp16", compute_capabilities=["8.6"])).unpack(tmp_path / "bundle")
    told = run_selftest(tmp_path / "bundle", PATH=put())
    assert (told["status"], told["runtime"], told["version"]) == ("ok", "TensorRT", "10.3.0")
    assert 0 < told["max_error"] < 1e-5, "six digits are printed"
    _, build, *runs = calls()
    assert {"--stronglyTyped", "--skipInference", "--noTF32"} <= set(build)
    assert len(runs) == 8 and all("--iterations=1" in run and "--includeDataTransfers" not in run for run in runs)

    shutil.copy(tmp_path / "bundle" / "fused.onnx", tmp_path / "bundle" / "fused.engine")
    told = run_selftest(tmp_path / "bundle", PATH=put(version="110400"))
    assert (told["status"], told["version"]) == ("ok", "11.4.0")
    assert all(any(word.endswith("bundle/fused.engine") for word in run) for run in calls()[-8:])
    assert "--includeDataTransfers" in calls()[-1]
    assert not any(word.startswith("--onnx") for call in calls()[11:] for word in call), (
        "an engine that is there is used"
    )


@pytest.mark.slow
def test_a_trtexec_that_hangs_or_fails_ends(checked_toy, pack, tmp_path, local_trtexec_stand_in):
    put, _ = local_trtexec_stand_in
    pack(checked_toy("tensorrt", "fp16", compute_capabilities=["8.6"])).unpack(tmp_path / "bundle")
    told = run_selftest(tmp_path / "bundle", "--time-limit", "2", PATH=put(hangs=True))
    assert told["status"] == "failed" and "did not end within 2 s" in told["reason"]
    (tmp_path / "bundle" / "fused.engine").write_bytes(b"of another TensorRT")
    told = run_selftest(tmp_path / "bundle", PATH=put())
    assert told["status"] == "failed" and "trtexec ended with 1" in told["reason"]


@pytest.mark.slow
def test_the_cpp_snippet_compiles_and_gives_the_golden_outputs(checked_toy, pack, tmp_path):
    """By the commands in its own first lines."""
    made = pack(checked_toy("executorch"))
    made.unpack(tmp_path / "bundle")
    source = tmp_path / "bundle" / "integration" / "classifier.cpp"
    commands = source.read_text().partition("from this folder:\n")[2].partition("In an app")[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def shell(script):
        return subprocess.run(
            ["sh", "-euc", script], cwd=source.parent, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )

    first = shell(commands)
    assert first.returncode == 0, first.stderr
    for case in json.loads(made.read("bundle.json"))["golden"]:
        printed = shell(f"./classifier ../fused.pte ../labels.txt ../{case['input']}").stdout.splitlines()
        want = struct.unpack("<10f", made.read(case["output"]))
        got = [float(line) for line in printed[1:]]
        assert max(abs(a - b) for a, b in zip(got, want, strict=True)) <= 1e-4 * max(map(abs, want))
        assert printed[0].endswith(f": {want.index(max(want))}")
        assert case["input"] != "golden/input0.bin" or first.stdout.splitlines() == printed


@pytest.mark.slow
def test_the_python_snippet_tells_the_class_of_an_image_file(checked_toy, pack, tmp_path):
    """The program's own class of the same image, prepared as in training."""
    import numpy as np
    import torch
    from PIL import Image

    from pipeline.backends.worker import client
    from pipeline.data import transforms

    made = pack(checked_toy("executorch"))
    made.unpack(tmp_path / "bundle")
    noise = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((112, 96), Image.BICUBIC)
    image.save(tmp_path / "photo.png")
    sys.path.insert(0, str(tmp_path / "bundle" / "integration"))
    try:
        import network_input
    finally:
        sys.path.pop(0)
        del sys.modules["network_input"]
    got = torch.frombuffer(
        bytearray(network_input.network_input(image, json.loads(made.read("bundle.json")))), dtype=torch.float32
    )
    how = made.manifest.preprocessing
    want = transforms.prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], how)
    assert (got.view(1, 3, 32, 32) - want).abs().max() < 1.1 / 255 / min(how.std), "a pixel's rounding"
    script = tmp_path / "bundle" / "integration" / "classify.py"
    done = subprocess.run([sys.executable, "-B", script, tmp_path / "photo.png"], capture_output=True, text=True)
    logits = torch.from_numpy(client.predict("executorch", tmp_path / "bundle" / "fused.pte", want.numpy()))
    told = re.search(r"photo.png: (\d) \((.*)%\)$", done.stdout.rstrip())
    assert int(told[1]) == int(logits.argmax()), done.stderr
    assert float(told[2]) == pytest.approx(100 * float(logits.softmax(1).max()), abs=0.2)
