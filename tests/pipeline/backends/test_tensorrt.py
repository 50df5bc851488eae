import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.backends import onnx, tensorrt_build
from pipeline.backends import tensorrt as backend
from pipeline.errors import InputError, StageError

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")

FORMS = ("fused", "branched")
GPUS = ["8.6", "8.9", "12.0"]


@pytest.fixture(scope="module")
def exported(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt")
    files, facts = {}, {}
    for form in FORMS:
        files[form] = [folder / f"{form}.onnx", folder / f"{form}.engine"]
        facts[form] = backend.export(programs[form], files[form], spec("fp16", compute_capabilities=GPUS))
    return files, facts


@pytest.mark.skipif(backend.host() is not None, reason="full TensorRT builds here")
def test_without_full_tensorrt_the_engine_is_of_tensorrt_rtx(exported):
    for form in FORMS:
        facts = exported[1][form]
        assert (facts["maker"], facts["compute_capabilities"], facts["opset"]) == ("TensorRT-RTX", GPUS, 18)
        assert facts["version"] == trt.__version__
        assert "TensorRT" in facts["passed_over"]
        engine = exported[0][form][1]
        assert engine.read_bytes()[:4] == b"vtrt"
        assert backend.engine_maker(engine) == ("TensorRT-RTX", trt.__version__)


def test_the_onnx_file_is_that_of_the_onnx_backend(exported, programs, spec, image, tmp_path):
    onnx.export(programs["fused"], [tmp_path / "same.onnx"], spec("fp16"))
    assert store.digest(tmp_path / "same.onnx") == store.digest(exported[0]["fused"][0])
    expected = programs["fused"].module()(image).detach().numpy()
    logits = backend.open_check_session(exported[0]["fused"][0], 1)(image.numpy())
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 5e-3


def test_the_same_onnx_file_gives_the_same_engine(exported, tmp_path):
    again = tmp_path / "again.engine"
    backend.build(exported[0]["fused"][0], again, GPUS)
    assert store.digest(again) == store.digest(exported[0]["fused"][1])


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"some text", "does not hold a valid ONNX")])
def test_a_bad_onnx_file_is_refused_before_the_parser_takes_it_for_a_network(tmp_path, content, told):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.onnx {told}"):
        backend.build(tmp_path / "bad.onnx", tmp_path / "bad.engine", GPUS)
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
        backend.build(tmp_path / "x.onnx", tmp_path / "x.engine", GPUS)


def test_a_jetsons_compute_capability_points_to_the_script(exported, tmp_path):
    with pytest.raises(
        StageError, match=r"no compute capability `8\.7`; known: 7\.5, .*for a Jetson .*build_engine\.sh"
    ):
        backend.build(exported[0]["fused"][0], tmp_path / "x.engine", ["8.7"])


def test_no_compute_capability_is_an_error(exported, tmp_path):
    with pytest.raises(InputError, match="`compute_capabilities` is empty"):
        backend.build(exported[0]["fused"][0], tmp_path / "x.engine", [])


@pytest.mark.parametrize("content", [b"", b"text, and no engine at all, you see", b"\xff\xfe\x80\x81" * 16, b"vtrt"])
def test_a_file_that_is_no_engine_is_named(tmp_path, content):
    (tmp_path / "bad.engine").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.engine is not a TensorRT engine"):
        backend.engine_maker(tmp_path / "bad.engine")


def test_the_maker_of_a_full_tensorrt_engine_is_told_by_its_header(tmp_path):
    (tmp_path / "x.engine").write_bytes(b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(100))
    assert backend.engine_maker(tmp_path / "x.engine") == ("TensorRT", "10.3.0.30")


@pytest.mark.skipif(backend._gpu() is not None, reason="says what a machine without a GPU is told")
def test_without_a_gpu_the_runtime_is_unavailable_and_says_what_to_do(exported):
    missing = backend.unavailable()
    assert "no NVIDIA GPU" in missing.reason and "build_engine.sh" in missing.remedy
    with pytest.raises(StageError, match=r"needs an NVIDIA GPU, and this machine has none\. Copy the \.onnx"):
        backend.open_session(exported[0]["fused"][0], 1)
    assert backend.host() is None


@pytest.mark.skipif(backend.unavailable() is not None, reason="needs a GPU")
def test_numbers_on_a_gpu(exported, programs, image):
    logits = backend.open_session(exported[0]["fused"][0], 1)(image.numpy())
    expected = programs["fused"].module()(image).detach().numpy()
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 5e-3


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (trt, "Logger ILogger Runtime Builder OnnxParser TensorIOMode ComputeCapability __version__"),
        (trt.Logger, "ERROR"),
        (trt.ILogger, "ERROR INTERNAL_ERROR"),
        (trt.TensorIOMode, "INPUT OUTPUT"),
        (trt.Runtime, "deserialize_cuda_engine"),
        (
            trt.ICudaEngine,
            "create_execution_context num_io_tensors get_tensor_name get_tensor_mode get_tensor_shape",
        ),
        (trt.IExecutionContext, "set_input_shape get_tensor_shape set_tensor_address execute_async_v3"),
        (trt.Builder, "create_network create_builder_config build_serialized_network"),
        (trt.INetworkDefinition, "num_outputs"),
        (trt.IBuilderConfig, "num_compute_capabilities set_compute_capability"),
        (trt.OnnxParser, "parse num_errors get_error"),
        (trt.ParserError, "node_name node_operator code desc"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "names",
)
def test_what_the_code_uses_of_the_bindings_is_there(owner, names):
    assert [name for name in names.split() if not hasattr(owner, name)] == []


def test_network_flags_are_taken_by_name():
    assert tensorrt_build._network_flags(trt) == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_script_builds_and_times_every_form(exported, spec, tmp_path):
    script = tmp_path / "build_engine.sh"
    backend.write_extras([script], spec())
    for form in FORMS:
        (tmp_path / f"{form}.onnx").write_bytes(exported[0][form][0].read_bytes())
    refused = subprocess.run([script], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (refused.returncode, "trtexec is not on PATH" in refused.stderr) == (1, True)
    # A stand-in that writes what it is asked to shows the calls; it says nothing of TensorRT.
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_in = (
        f"#!{sys.executable}\nimport sys, pathlib\n"
        "for option in sys.argv[1:]:\n"
        "    name, _, value = option.partition('=')\n"
        "    if name in ('--saveEngine', '--exportTimes'):\n"
        "        pathlib.Path(value).write_text(' '.join(sys.argv[1:]))\n"
    )
    (tools / "trtexec").write_text(stand_in)
    (tools / "trtexec").chmod(0o755)
    subprocess.run([script], check=True, cwd="/", env={"PATH": f"{tools}:/usr/bin:/bin"})
    for form in FORMS:
        assert f"--onnx={form}.onnx" in (tmp_path / f"{form}.engine").read_text()
        assert f"--loadEngine={form}.engine" in (tmp_path / f"{form}.times.json").read_text()
    assert not list(Path(tmp_path).glob("*.new"))


def test_without_a_builder_the_onnx_file_alone_is_written(program_files, tmp_path):
    script = f"""
import json, sys
from pathlib import Path
import torch
sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = None  # as where they are not installed
from pipeline import backends
from pipeline.manifest import ExportSpec, Preprocessing
backend = backends.load("tensorrt")
spec = ExportSpec("fp16", (1, 3, 16, 16), Preprocessing(16, (0.5,) * 3, (0.5,) * 3, tuple("abcde")))
program = torch.export.load({str(program_files["fused"])!r})
facts = backend.export(program, [Path({str(tmp_path / "fused.onnx")!r})], spec)
print(json.dumps([backends.file_names("tensorrt", ["fused"]), facts["maker"], facts["reason"]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        ["fused.onnx", "build_engine.sh"],
        None,
        "no TensorRT is installed on the machine that exported this",
    ]
    onnx.check(tmp_path / "fused.onnx")
