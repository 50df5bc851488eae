import copy
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.backends.onnx import backend as onnx
from pipeline.backends.tensorrt import backend, builder, engines, export
from pipeline.backends.tensorrt.options import Options
from pipeline.errors import InputError, StageError
from pipeline.models import networks

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")

FORMS = ("fused", "branched")
GPUS = ["8.6", "8.9", "12.0"]
OPEN = {"min": 1, "opt": 2, "max": 4}


@pytest.mark.skipif(backend.BACKEND.host() is not None, reason="full TensorRT builds here")
def test_without_full_tensorrt_the_engine_is_of_tensorrt_rtx(tensorrt_files):
    for form in FORMS:
        facts = tensorrt_files[1][form]
        assert (facts["maker"], facts["compute_capabilities"], facts["opset"]) == ("TensorRT-RTX", GPUS, 18)
        assert facts["version"] == trt.__version__
        assert "TensorRT" in facts["passed_over"]
        engine = tensorrt_files[0][form][1]
        assert engine.read_bytes()[:4] == b"vtrt"
        assert engines.engine_maker(engine) == ("TensorRT-RTX", trt.__version__)


def test_the_onnx_file_is_that_of_the_onnx_backend(tensorrt_files, programs, spec, image, tmp_path):
    onnx.export(programs["fused"], [tmp_path / "same.onnx"], spec("fp16"))
    assert digests.digest(tmp_path / "same.onnx") == digests.digest(tensorrt_files[0]["fused"][0])
    expected = programs["fused"].module()(image).detach().numpy()
    logits = backend.RUNTIME.open_check_session(tensorrt_files[0]["fused"][0], 1)(image.numpy())[0]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 5e-3


def test_the_same_onnx_file_gives_the_same_engine(tensorrt_files, tmp_path):
    again = tmp_path / "again.engine"
    export.build(tensorrt_files[0]["fused"][0], again, {"compute_capabilities": GPUS})
    assert digests.digest(again) == digests.digest(tensorrt_files[0]["fused"][1])


def test_each_option_reaches_the_builder(tensorrt_files, tmp_path):
    onnx_file, plain = tensorrt_files[0]["fused"]
    for option in ({"tf32": True}, {"builder_optimization_level": 0}, {"workspace_mb": 64}):
        export.build(onnx_file, tmp_path / "x.engine", {"compute_capabilities": GPUS, **option})
    export.build(onnx_file, tmp_path / "x.engine", {"compute_capabilities": GPUS, "tf32": True})
    assert digests.digest(tmp_path / "x.engine") != digests.digest(plain)


def test_an_open_batch_is_built_with_its_bounds(programs, spec, tmp_path):
    files = [tmp_path / "open.onnx", tmp_path / "open.engine"]
    facts = backend.export(programs["branched"], files, spec("fp32", compute_capabilities=GPUS, dynamic_batch=OPEN))
    assert facts["maker"] == "TensorRT-RTX"
    with pytest.raises(StageError, match="leaves the batch of `image` open, and `dynamic_batch` is not set: export"):
        export.build(files[0], tmp_path / "x.engine", {"compute_capabilities": GPUS})
    _, logger = builder._logger(trt)
    trt_builder = trt.Builder(logger)
    network = trt_builder.create_network(builder._network_flags(trt))
    assert trt.OnnxParser(network, logger).parse(files[0].read_bytes())
    config = trt_builder.create_builder_config()
    profile = builder._open_batch(trt_builder, config, network, Options(dynamic_batch=OPEN))
    assert [tuple(shape) for shape in profile.get_shape("image")] == [(n, 3, 16, 16) for n in (1, 2, 4)]
    assert config.num_optimization_profiles == 1


def test_bounds_for_a_file_of_a_fixed_batch_are_refused(tensorrt_files, tmp_path):
    with pytest.raises(StageError, match="has a batch of 1 for `image`, and `dynamic_batch` is set: export it again"):
        export.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", {"dynamic_batch": OPEN})


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"some text", "does not hold a valid ONNX")])
def test_a_bad_onnx_file_is_refused_before_the_parser_takes_it_for_a_network(tmp_path, content, told):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.onnx {told}"):
        export.build(tmp_path / "bad.onnx", tmp_path / "bad.engine", {})
    assert not (tmp_path / "bad.engine").exists()


def test_a_node_that_tensorrt_lacks_is_named(tmp_path):
    from onnx import TensorProto, helper, save

    node = helper.make_node("Det", ["a"], ["b"], name="the_determinant")
    ends = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4, 4]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]),
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "x.onnx")
    with pytest.raises(StageError, match=r"no engine could be built .*TensorRT.*`the_determinant` \(Det\)"):
        export.build(tmp_path / "x.onnx", tmp_path / "x.engine", {"compute_capabilities": GPUS})


def test_a_jetsons_compute_capability_points_to_the_script(tensorrt_files, tmp_path):
    with pytest.raises(
        StageError, match=r"no compute capability `8\.7`; known: 7\.5, .*for a Jetson .*build_engine\.sh"
    ):
        export.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", {"compute_capabilities": ["8.7"]})


def test_no_compute_capability_is_an_error(tensorrt_files, tmp_path):
    with pytest.raises(InputError, match="`compute_capabilities` is empty"):
        export.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", {"compute_capabilities": []})


def test_the_timing_cache_is_kept_taken_up_and_begun_anew_where_it_does_not_fit(tensorrt_files, tmp_path):
    """By TensorRT-RTX, whose interface is the same; there is nothing in its cache."""
    file = tmp_path / "folder" / "a.timing"
    _, logger = builder._logger(trt)
    trt_builder = trt.Builder(logger)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for content in (None, None, b"garbage" * 9):
            if content:
                file.write_bytes(content)
            config = trt_builder.create_builder_config()
            builder._load_timing_cache(config, file)
            assert config.get_timing_cache() is not None
            builder._save_timing_cache(config, file)
            assert file.read_bytes() not in (b"", content)
    assert [path.name for path in file.parent.iterdir()] == ["a.timing"]


def test_a_build_writes_no_timing_cache_where_nothing_is_measured(tensorrt_files, tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    export.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", {"timing_cache": str(tmp_path / "x.timing")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.engine"]


def test_how_far_a_build_is_goes_to_its_own_file_and_nowhere_else(tensorrt_files, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as opened:
        from pipeline.backends.tensorrt.progress import Progress

        with Progress("x.engine", opened.fileno(), every_seconds=0) as progress:
            monitor = builder._monitor(trt, progress)
            _, logger = builder._logger(trt)
            trt_builder = trt.Builder(logger)
            network = trt_builder.create_network(builder._network_flags(trt))
            assert trt.OnnxParser(network, logger).parse(tensorrt_files[0]["fused"][0].read_bytes())
            config = trt_builder.create_builder_config()
            config.progress_monitor = monitor
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM89, 0)
            assert trt_builder.build_serialized_network(network, config) is not None
            assert progress._left == {}, "a phase did not end"
    lines = log.read_text().splitlines()
    assert lines[0].startswith("x.engine: Building engine, ") and len(lines) > 3


def test_on_a_terminal_it_is_a_bar(tensorrt_files, tmp_path):
    pty = pytest.importorskip("pty")
    code = (
        "from pathlib import Path\nfrom pipeline.backends.tensorrt import export as tensorrt\n"
        f"tensorrt.build(Path({str(tensorrt_files[0]['fused'][0])!r}), Path({str(tmp_path / 'x.engine')!r}), {{}})\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True, cwd=os.getcwd()
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "x.engine: " in shown and "%|" in shown and done.stdout == b""


def test_a_terminal_that_goes_away_does_not_stop_a_build(tmp_path):
    from pipeline.backends.tensorrt.progress import Progress

    reader, writer = os.pipe()
    with Progress("x", writer, every_seconds=0) as progress:
        os.close(writer)
        os.close(reader)
        progress.start("phase", 2)
        progress.step("phase")
        progress.finish("phase")


def test_network_flags_are_taken_by_name():
    assert builder._network_flags(trt) == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_without_a_builder_the_onnx_file_alone_is_written(program_files, tmp_path):
    script = f"""
import json, sys
from pathlib import Path
import torch
sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = None  # as where they are not installed
from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
backend = backends.load("tensorrt")
spec = ExportSpec("fp16", (1, 3, 16, 16), Preprocessing(16, (0.5,) * 3, (0.5,) * 3, tuple("abcde")))
program = torch.export.load({str(program_files["fused"])!r})
facts = backend.export(program, [Path({str(tmp_path / "fused.onnx")!r})], spec)
print(json.dumps([backends.file_names("tensorrt", ["fused"]), facts["maker"], facts["reason"]]))
"""
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        ["fused.onnx", "build_engine.sh"],
        None,
        "no TensorRT is installed on the machine that exported this",
    ]
    onnx.check(tmp_path / "fused.onnx")


@pytest.fixture(
    scope="module", params=[("toy", 32), ("repvgg_a0", 32), ("mobileone_s0", 64), ("repshufflenet_x1_0", 32)]
)
def fused(request, randomise):
    """A network, fused, and two images for it."""
    import repnets

    arch, size = request.param
    images = torch.randn(2, 3, size, size).half().float()
    return repnets.fuse(randomise(networks.build(arch, 10)).eval(), images).module, images


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, OPEN], ids=["static", "open"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_network_builds_in_every_precision(fused, precision, batch, tmp_path):
    """By NVIDIA's own parser and builder; and the file that they take computes what the network does."""
    network, images = fused
    preprocessing = Preprocessing(images.shape[-1], (0.5,) * 3, (0.5,) * 3, tuple("abcdefghij"))
    spec = ExportSpec(precision, tuple(images.shape), preprocessing, {"dynamic_batch": batch})
    files = [tmp_path / "x.onnx", tmp_path / "x.engine"]
    assert (
        backend.BACKEND.export(torch.export.export(network, (images,)), files, spec)["maker"] in engines.MAKERS.values()
    )
    rounded = copy.deepcopy(network).half().float() if precision == "fp16" else network
    with torch.inference_mode():
        want = rounded(images).numpy()
    error = np.abs(backend.RUNTIME.open_exact_session(files[0], 1)(images.numpy())[0] - want).max() / np.abs(want).max()
    assert error < 1e-5
