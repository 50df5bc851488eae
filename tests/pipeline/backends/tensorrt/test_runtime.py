import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backends.tensorrt import backend, engines, runtime
from pipeline.errors import InputError, StageError

HERE = engines.compute_capability() is not None
OPENERS = {
    "session": lambda file, image: backend.RUNTIME.open_session(file, 1),
    "clock": lambda file, image: backend.RUNTIME.open_clock(file, 1, image),
    "transfer": backend.RUNTIME.transfer_ms,
    "profile": lambda file, image: backend.RUNTIME.profile(file, 1, image, 3),
}


@pytest.mark.skipif(HERE, reason="says what a machine without a GPU is told")
def test_without_a_gpu_the_runtime_is_unavailable_and_says_what_to_do(tensorrt_files, stand_in):
    stand_in("")
    missing = backend.BACKEND.unavailable()
    assert "no NVIDIA GPU" in missing.reason and "build_engine.sh" in missing.remedy, "trtexec alone is no GPU"
    assert backend.BACKEND.host() is None


@pytest.mark.skipif(HERE, reason="says what a machine without a GPU is told")
@pytest.mark.parametrize("way", OPENERS)
def test_without_a_gpu_nothing_opens(tensorrt_files, image, way):
    with pytest.raises(StageError, match=r"needs an NVIDIA GPU, and this machine has none\. Copy the \.onnx"):
        OPENERS[way](tensorrt_files[0]["fused"][0], image.numpy())


def test_a_gpu_and_trtexec_are_enough(monkeypatch, stand_in, tensorrt_files, image):
    """As on a Jetson of JetPack 6, whose Python is too old for this project: no TensorRT is importable in it."""
    monkeypatch.setattr(runtime, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(engines, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(engines, "MAKERS", {})
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if runtime.trtexec.find() is None:
        assert "TensorRT" in backend.BACKEND.unavailable().reason
    stand_in("raise SystemExit('it was asked')")
    assert backend.BACKEND.unavailable() is None
    files = {"fused": tensorrt_files[0]["fused"][0]}
    with pytest.raises(StageError, match="it was asked"):
        backend.RUNTIME.time_files(files, image.numpy(), warmup_seconds=0, min_runs=1, max_seconds=1)
    with pytest.raises(StageError, match="it was asked"):
        backend.RUNTIME.profile(files["fused"], 1, image.numpy(), 3)
    with pytest.raises(StageError, match="it was asked"):
        backend.RUNTIME.transfer_ms(files["fused"], image.numpy())


def test_where_the_python_runtime_runs_trtexec_is_not_asked(monkeypatch, tensorrt_files, image, stand_in):
    monkeypatch.setattr(engines, "compute_capability", lambda: "8.9")  # TensorRT-RTX is installed, and runs on it
    stand_in("raise SystemExit('it was asked')")
    monkeypatch.setattr(engines, "torch_has_cuda", lambda: True)
    assert engines.python_runtime() is not None
    files = {"fused": tensorrt_files[0]["fused"][0]}
    assert backend.RUNTIME.time_files(files, image.numpy(), warmup_seconds=0, min_runs=1, max_seconds=1) is None


def test_a_torch_for_cpus_holds_no_buffers_on_a_gpu(monkeypatch):
    monkeypatch.setattr(engines, "compute_capability", lambda: "8.9")
    monkeypatch.setattr(engines, "torch_has_cuda", lambda: False)
    assert engines.python_runtime() is None


def test_whether_torch_has_cuda_is_told_without_importing_it():
    code = (
        "import sys; from pipeline.backends.tensorrt import engines\n"
        "print(engines.torch_has_cuda(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == [str(torch.version.cuda is not None), "False"]


def test_a_gpu_that_tensorrt_rtx_does_not_run_on_is_told(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    if runtime.find_spec("tensorrt"):
        pytest.skip("full TensorRT is here")
    for module in (runtime, engines):
        monkeypatch.setattr(module, "compute_capability", lambda: "9.0")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(engines, "torch_has_cuda", lambda: True)
    assert "compute capability 9.0, which TensorRT-RTX does not run on" in backend.BACKEND.unavailable().reason
    monkeypatch.setattr(runtime, "torch_has_cuda", lambda: False)
    missing = backend.BACKEND.unavailable()
    assert "torch is installed without CUDA" in missing.reason and "trtexec" in missing.remedy


@pytest.mark.parametrize("way", OPENERS)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda whole: b"text, and no engine at all, you see", "is not a TensorRT engine"),
        (lambda whole: whole[: len(whole) // 2], "is cut short"),
        (lambda whole: whole[:25] + bytes([whole[25] + 1]) + whole[26:], "an engine runs on the version"),
    ],
    ids=["text", "truncated", "version"],
)
def test_a_bad_engine_is_refused_before_it_is_loaded(tensorrt_files, image, tmp_path, way, damage, told):
    if runtime.python_runtime() is None and runtime.trtexec.find() is not None:
        pytest.skip("trtexec builds its own engines")
    (tmp_path / "x.onnx").write_bytes(tensorrt_files[0]["fused"][0].read_bytes())
    (tmp_path / "x.engine").write_bytes(damage(tensorrt_files[0]["fused"][1].read_bytes()))
    with pytest.raises(InputError, match=told):
        OPENERS[way](tmp_path / "x.onnx", image.numpy())


def test_an_engine_whose_maker_is_not_installed_is_told(tmp_path):
    if runtime.find_spec("tensorrt"):
        pytest.skip("full TensorRT is here")
    header = b"ftrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([10, 3, 0, 30])
    (tmp_path / "x.engine").write_bytes(header)
    with pytest.raises(
        (StageError, InputError), match=r"built by TensorRT 10\.3\.0\.30, (which is not|and TensorRT-RTX)"
    ):
        backend.RUNTIME.open_session(tmp_path / "x.engine", 1)


@pytest.mark.skipif(not HERE or backend.BACKEND.unavailable() is not None, reason="needs a GPU and TensorRT")
def test_numbers_on_a_gpu(tensorrt_files, programs, image):
    if runtime.python_runtime() is None:
        pytest.skip("trtexec gives no numbers")
    logits = backend.RUNTIME.open_session(tensorrt_files[0]["fused"][0], 1)(image.numpy())[0]
    expected = programs["fused"].module()(image).detach().numpy()
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 5e-3


@pytest.mark.skipif(not HERE or backend.BACKEND.unavailable() is not None, reason="needs a GPU and TensorRT")
def test_figures_on_a_gpu(tensorrt_files, image):
    if runtime.python_runtime() is None:
        pytest.skip("trtexec times by itself")
    file = tensorrt_files[0]["fused"][0]
    clock = backend.RUNTIME.open_clock(file, 1, image.numpy())
    assert all(clock() > 0 for _ in range(5))
    assert set(backend.RUNTIME.transfer_ms(file, image.numpy())) == {"host_to_device", "device_to_host"}
    layers = backend.RUNTIME.profile(file, 1, image.numpy(), 5)
    assert any("conv2d" in layer["name"] and layer["ms"] > 0 for layer in layers)


def test_the_script_builds_and_times_every_form(tensorrt_files, spec, tmp_path, stand_in):
    script = tmp_path / "build_engine.sh"
    backend.BACKEND.write_extras([script], spec())
    for form in tensorrt_files[0]:
        (tmp_path / f"{form}.onnx").write_bytes(tensorrt_files[0][form][0].read_bytes())
    refused = subprocess.run([script], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert (refused.returncode, "trtexec is not on PATH" in refused.stderr) == (1, True)
    # A stand-in that writes what it is asked to shows the calls; it says nothing of TensorRT.
    stand_in(
        "import sys, pathlib\n"
        "print('&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec')\n"
        "for option in sys.argv[1:]:\n"
        "    name, _, value = option.partition('=')\n"
        "    if name in ('--saveEngine', '--exportTimes'):\n"
        "        pathlib.Path(value).write_text(' '.join(sys.argv[1:]))\n"
    )
    subprocess.run([script], check=True, cwd="/", env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    for form in tensorrt_files[0]:
        built, timed = ((tmp_path / f"{form}.{kind}").read_text().split() for kind in ("engine", "times.json"))
        assert f"--onnx={form}.onnx" in built and f"--loadEngine={form}.engine" in timed
        assert {"--stronglyTyped", "--noTF32", "--timingCacheFile=build-v101303.timing", "--skipInference"} <= set(
            built
        )
        assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= set(timed)
        assert not any("hapes=" in option for option in (*built, *timed))
    assert not list(Path(tmp_path).glob("*.new"))


def test_the_script_gives_an_open_batch_its_bounds(spec, tmp_path):
    backend.BACKEND.write_extras([tmp_path / "x.sh"], spec(dynamic_batch={"min": 1, "opt": 2, "max": 4}, tf32=True))
    text = (tmp_path / "x.sh").read_text()
    for option in ("--minShapes=image:1x3x16x16", "--optShapes=image:2x3x16x16", "--maxShapes=image:4x3x16x16"):
        assert option in text
    assert "--shapes=image:1x3x16x16" in text and "--noTF32" not in text
    subprocess.run(["sh", "-n", tmp_path / "x.sh"], check=True)
