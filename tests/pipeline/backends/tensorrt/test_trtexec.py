"""What trtexec is told, and what is read of what it writes, by samples in the formats that its code writes.

trtexec itself needs a GPU and has not run. Where a program stands in for it, that shows the order of the
calls and the handling of the files, and says nothing of TensorRT.
"""

import json

import numpy as np
import pytest

from pipeline.backends.tensorrt import layer_info, trtexec
from pipeline.backends.tensorrt.options import Options
from pipeline.errors import InputError, StageError

TIMES = """[
  { "startEnqMs" : 206.03, "endEnqMs" : 206.05, "startH2dMs" : 206.05, "endH2dMs" : 206.05, "startComputeMs" : 206.05, "endComputeMs" : 206.9, "startD2hMs" : 206.9, "endD2hMs" : 206.9, "h2dMs" : 0.02, "computeMs" : 0.862, "d2hMs" : 0.01, "latencyMs" : 0.862 }
, { "startEnqMs" : 206.92, "endEnqMs" : 206.93, "startH2dMs" : 206.93, "endH2dMs" : 206.93, "startComputeMs" : 206.93, "endComputeMs" : 207.8, "startD2hMs" : 207.8, "endD2hMs" : 207.8, "h2dMs" : 0.04, "computeMs" : 0.869, "d2hMs" : 0.01, "latencyMs" : 0.869 }
]
"""  # noqa: E501

PROFILE = """[
  { "count" : 3 }
, { "name" : "Reformatting CopyNode for Input Tensor 0 to to", "timeMs" : 0.03, "averageMs" : 0.01, "medianMs" : 0.009, "percentage" : 3 }
, { "name" : "conv2d + relu", "timeMs" : 0.9, "averageMs" : 0.3, "medianMs" : 0.31, "percentage" : 90 }
, { "name" : "linear", "timeMs" : 0.07, "averageMs" : 0.0233, "medianMs" : 0.02, "percentage" : 7 }
]
"""  # noqa: E501

DETAILED = """{"Layers": [{
  "Name": "Reformatting CopyNode for Input Tensor 0 to to",
  "LayerType": "Reformat",
  "Inputs": [{"Name": "image", "Dimensions": [1,3,32,32], "Format/Datatype": "Row major linear FP32"}]
},{
  "Name": "conv2d + relu",
  "LayerType": "CaskConvolution",
  "Kernel": [3,3],
  "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize64x64x64"
}],
"Bindings": ["image"
,"logits"
]}
"""

NAMES_ONLY = '{"Layers": ["conv2d + relu"\n,"linear"\n],\n"Bindings": ["image"\n,"logits"\n]}'

PRINTED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=fused.engine
[02/27/2026-18:35:51] [I] === Performance summary ===
[02/27/2026-18:35:51] [I] Throughput: 207.4 qps
[02/27/2026-18:35:51] [I] Latency: min = 4.81763 ms, max = 4.86572 ms, mean = 4.83767 ms, median = 4.83752 ms, percentile(90%) = 4.84772 ms, percentile(95%) = 4.85034 ms, percentile(99%) = 4.85547 ms
[02/27/2026-18:35:51] [I] Enqueue Time: min = 0.00317383 ms, max = 0.0112305 ms, mean = 0.00351 ms, median = 0.0034 ms, percentile(90%) = 0.0037 ms
[02/27/2026-18:35:51] [I] GPU Compute Time: min = 4.5 ms, max = inf ms, mean = 4.6 ms, median = 4.55 ms, percentile(90%) = 4.7e+00 ms
&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=fused.engine
"""  # noqa: E501


def test_times_are_those_of_the_gpu():
    assert trtexec.read_times(TIMES) == [0.862, 0.869]
    assert trtexec.read_times(TIMES, "h2dMs") == [0.02, 0.04]


@pytest.mark.parametrize(
    "text",
    [
        "", "[\n]\n", '[{"latencyMs": 1}]', '[{"computeMs": -1}]', '[{"computeMs": NaN}]', "5", '[{"computeMs": "1"}]',
        '[{"computeMs": 1e400}]', f'[{{"computeMs": 1{"0" * 400}}}]', '[{"computeMs": true}]', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_without_times_is_refused(text):
    with pytest.raises(ValueError):
        trtexec.read_times(text)


def test_layers_have_a_time_and_a_kind():
    times = trtexec.read_profile(PROFILE)
    assert layer_info.joined(times, DETAILED) == [
        {"name": "Reformatting CopyNode for Input Tensor 0 to to", "kind": "Reformat", "ms": 0.009},
        {"name": "conv2d + relu", "kind": "CaskConvolution", "ms": 0.31},
        {"name": "linear", "kind": "", "ms": 0.02},
    ]


@pytest.mark.parametrize(
    "information", [NAMES_ONLY, "", "{}", '{"Layers": null}', "[]", "[" * 100_000, '{"Layers": [{"Name": [1]}]}']
)
def test_without_a_description_layers_have_no_kind(information):
    assert {entry["kind"] for entry in layer_info.joined(trtexec.read_profile(PROFILE), information)} == {""}


@pytest.mark.parametrize(
    "text",
    ['[\n  { "count" : 3 }\n]\n', "", "5", '[{"name": "conv2d"}]', '[{"name": "a", "medianMs": -1}]', "[" * 100_000],
)
def test_a_profile_without_a_layer_is_refused(text):
    with pytest.raises(ValueError):
        trtexec.read_profile(text)


def test_a_run_without_a_profile_is_told(tensorrt_files, calls, image):
    calls(files={})
    with pytest.raises(StageError, match=r"but left no profile of it .*trtexec --loadEngine="):
        trtexec.profile(tensorrt_files[0]["fused"][0], image.numpy(), 5)


def test_the_printed_summary_is_read_where_only_it_is_had():
    found = trtexec.read_summary(PRINTED)
    assert list(found) == ["Latency", "Enqueue Time", "GPU Compute Time"]
    assert found["Latency"]["percentile(99%)"] == 4.85547
    assert found["GPU Compute Time"]["median"] == 4.55
    assert found["GPU Compute Time"]["max"] == float("inf") and found["GPU Compute Time"]["percentile(90%)"] == 4.7


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec", "10.3.0"),
        ("&&&& PASSED TensorRT.trtexec [TensorRT v101303] [b9] # trtexec", "10.13.3.9"),
        ("&&&& FAILED TensorRT.trtexec [TensorRT v110400] [b106] # trtexec", "11.4.0.106"),
    ],
)
def test_the_version_is_that_of_the_last_line(line, version):
    assert trtexec.version(f"&&&& RUNNING TensorRT.trtexec [TensorRT v80601] # x\nsome text\n{line}\n") == version


@pytest.mark.parametrize("digits", ["", "1", "9" * 5000])
def test_a_program_that_says_no_version_is_told(digits):
    printed = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] # x\nSegmentation fault\n"
    with pytest.raises(StageError, match=r"did not say its version; it said last: .*Segmentation fault") as refused:
        trtexec.version(printed)
    assert len(str(refused.value)) < 300


def test_figures_that_cannot_be_are_none():
    line = "[I] GPU Compute Time: min = -1 ms, median = -4.55 ms, max = 1e ms, mean = . ms"
    assert trtexec.read_summary(line.replace("[I]", "[02/27/2026-18:35:51] [I]")) == {"GPU Compute Time": {}}
    assert trtexec.read_summary(f"Latency: {'a' * 10_000_000}") == {}


def test_errors_are_quoted_in_short():
    assert len(trtexec.last_errors(f"[E] {'x' * 10_000_000}\n" * 2)) < 500


def test_every_option_is_told_since_versions_differ_in_their_defaults():
    assert trtexec.build_options(Options(), {"image": (1, 3, 32, 32)}) == [
        "--stronglyTyped",
        "--profilingVerbosity=detailed",
        "--skipInference",
        "--noTF32",
    ]
    options = Options(
        dynamic_batch={"min": 1, "opt": 4, "max": 8}, builder_optimization_level=0, workspace_mb=512, tf32=True
    )
    assert trtexec.build_options(options, {"image": (2, 3, 32, 16)})[3:] == [
        "--builderOptimizationLevel=0",
        "--memPoolSize=workspace:512M",
        "--minShapes=image:1x3x32x16",
        "--optShapes=image:4x3x32x16",
        "--maxShapes=image:8x3x32x16",
    ]
    assert trtexec.shape_option({"left": (2, 3, 8, 8), "vector": (2, 6)}) == ["--shapes=left:2x3x8x8,vector:2x6"]


STAND_IN = """
import json, pathlib, sys
told = dict(option.lstrip("-").partition("=")[::2] for option in sys.argv[1:])
with open({log!r}, "a") as log:
    log.write(json.dumps(told) + "\\n")
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b9] # trtexec")
if "saveEngine" in told:
    header = b"ftrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([10, 13, 3, 9])
    pathlib.Path(told["saveEngine"]).write_bytes(header)
for option, text in {files!r}.items():
    if option in told:
        pathlib.Path(told[option]).write_text(text)
print({printed!r})
print("&&&& PASSED TensorRT.trtexec [TensorRT v{version}] [b9] # trtexec")
sys.exit({code})
"""


@pytest.fixture
def calls(tmp_path, stand_in):
    """Make the stand-in write these files, print this and end so; gives a function for what it was told."""

    def make(files=None, printed="", code=0, version="101303"):
        log = tmp_path / "calls"
        files = (
            {"exportTimes": TIMES, "exportProfile": PROFILE, "exportLayerInfo": DETAILED} if files is None else files
        )
        stand_in(STAND_IN.format(log=str(log), files=files, printed=printed, code=code, version=version))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return make


def test_forms_are_timed_in_turn_by_engines_of_this_version(tensorrt_files, calls, image):
    told = calls()
    files = {form: files[0] for form, files in tensorrt_files[0].items()}
    rounds = trtexec.time_files(files, image.numpy(), warmup_seconds=0.2, min_runs=25, max_seconds=3)
    assert {form: len(taken) for form, taken in rounds.items()} == {"fused": 10, "branched": 10}
    assert all(taken == [0.862, 0.869] for form in rounds.values() for taken in form)
    asked = [call for call in told() if "help" not in call]
    built, timed = asked[:2], asked[2:]
    # The engines beside the files are of TensorRT-RTX, so trtexec's own are built.
    assert [call["onnx"] for call in built] == [str(file) for file in files.values()]
    assert not any("minShapes" in call for call in built)
    assert [call["loadEngine"] for call in timed] == [call["saveEngine"] for call in built] * 10
    for call in timed:
        assert {"useCudaGraph", "useSpinWait", "noDataTransfers"} <= set(call)
        assert (call["warmUp"], call["duration"], call["iterations"]) == ("200", "0.150", "3")
        assert "shapes" not in call


@pytest.mark.parametrize(("version", "is_taken"), [([10, 13, 3, 9], True), ([10, 3, 0, 30], False)])
def test_an_engine_of_this_version_alone_is_taken_as_it_is(tensorrt_files, calls, image, tmp_path, version, is_taken):
    told = calls()
    (tmp_path / "fused.onnx").write_bytes(tensorrt_files[0]["fused"][0].read_bytes())
    header = b"ftrt" + bytes(12) + (28).to_bytes(8, "little") + bytes(version)
    (tmp_path / "fused.engine").write_bytes(header)
    trtexec.profile(tmp_path / "fused.onnx", image.numpy(), 7)
    call = told()[-1]
    assert (call["loadEngine"] == str(tmp_path / "fused.engine")) == is_taken
    assert any("saveEngine" in one for one in told()) != is_taken
    assert call["iterations"] == "7" and {"dumpProfile", "separateProfileRun"} <= set(call)


@pytest.mark.parametrize(("major", "is_asked"), [(10, False), (11, True)])
def test_transfers_are_asked_for_as_the_version_wants_it(tensorrt_files, calls, image, major, is_asked):
    told = calls(version=f"{major}1303")
    found = trtexec.transfer_ms(tensorrt_files[0]["fused"][0], image.numpy())
    assert found == {"host_to_device": pytest.approx(0.03), "device_to_host": 0.01}
    call = told()[-1]
    assert ("includeDataTransfers" in call) == is_asked and "noDataTransfers" not in call


def test_an_open_batch_is_given_its_shape(programs, spec, calls, image, tmp_path):
    from pipeline.backends.onnx import backend as onnx

    onnx.export(programs["fused"], [tmp_path / "f.onnx"], spec(dynamic_batch={"min": 1, "opt": 2, "max": 4}))
    told = calls()
    found = trtexec.profile(tmp_path / "f.onnx", np.repeat(image.numpy(), 3, 0), 5)
    assert [entry["name"] for entry in found][1:] == ["conv2d + relu", "linear"]
    built, profiled = (call for call in told() if "help" not in call)
    assert built["minShapes"] == built["optShapes"] == built["maxShapes"] == "image:3x3x16x16"
    assert profiled["shapes"] == "image:3x3x16x16"


def test_without_the_file_of_times_the_printed_median_stands_for_a_round(tensorrt_files, calls, image):
    calls(files={}, printed=PRINTED)
    rounds = trtexec.time_files(
        {"fused": tensorrt_files[0]["fused"][0]}, image.numpy(), warmup_seconds=0, min_runs=1, max_seconds=1
    )
    assert rounds == {"fused": [[4.55]] * 10}
    calls(files={})
    with pytest.raises(StageError, match=r"gave no times\. Run build_engine\.sh by hand"):
        trtexec.time_files(
            {"fused": tensorrt_files[0]["fused"][0]}, image.numpy(), warmup_seconds=0, min_runs=1, max_seconds=1
        )


def test_a_failure_is_told_in_trtexecs_own_words(tensorrt_files, calls, tmp_path):
    calls(printed="[01/01/2026-00:00:00] [E] Error[1]: no kernel image\n[01/01/2026-00:00:00] [I] more", code=1)
    with pytest.raises(
        StageError, match=r"trtexec ended with 1 on .*fused\.onnx; it said: Error\[1\]: no kernel image"
    ):
        trtexec.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", Options(), str(tmp_path / "a.timing"))


def test_a_build_says_the_version_and_keeps_its_measurements(tensorrt_files, calls, tmp_path):
    told = calls()
    cache = tmp_path / "folder" / "a-{version}.timing"
    version = trtexec.build(tensorrt_files[0]["fused"][0], tmp_path / "x.engine", Options(workspace_mb=64), str(cache))
    assert version == "10.13.3.9"
    _, call = told()
    assert call["timingCacheFile"] == str(tmp_path / "folder" / "a-10.13.3.9.timing") and cache.parent.is_dir()
    assert call["memPoolSize"] == "workspace:64M"


def test_where_there_is_no_trtexec_it_is_told(tensorrt_files, image, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if trtexec.find() is not None:
        pytest.skip("trtexec is here")
    assert trtexec.fingerprint() is None
    with pytest.raises(StageError, match="trtexec is not on this machine: install JetPack's or NVIDIA's TensorRT"):
        trtexec.profile(tensorrt_files[0]["fused"][0], image.numpy(), 5)


def test_a_damaged_file_is_refused_before_trtexec_is_asked_to_build(calls, image, tmp_path):
    calls()
    (tmp_path / "x.onnx").write_text("text")
    with pytest.raises(InputError, match=r"x\.onnx does not hold a valid ONNX model"):
        trtexec.profile(tmp_path / "x.onnx", image.numpy(), 5)
