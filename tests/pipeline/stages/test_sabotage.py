"""Files and networks damaged on purpose: each is caught, by the gate that should, with a message that helps."""

import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.config.project import Verify
from pipeline.config.stages import ExportSettings, NoSettings
from pipeline.errors import GateError, InputError
from pipeline.models import checkpoints, programs
from pipeline.stages import export, reparameterize, verify

pytestmark = pytest.mark.slow


def export_fused(artifacts, folder, backend, precision="fp32", options=None, name="toy"):
    export.run(
        ExportSettings(target=backend, model=name, backend=backend, precision=precision, forms=("fused",), batch=1,
                       image_size=None, options=options or {}),
        checkpoint=artifacts.checkpoint, fused=artifacts.fused, verify=artifacts.verify,
        manifest=folder / "manifest.json",
    )  # fmt: skip
    return folder


@pytest.fixture
def copied(exported_toy, tmp_path):
    """A function: a copy of the folder of the fused toy for a backend, to be damaged."""

    def copy(*kind, **options):
        return shutil.copytree(exported_toy(*kind, **options), tmp_path / "toy")

    return copy


@pytest.fixture(scope="module")
def felt(artifacts):
    """Channel out, channel in, row and column of a weight of stage2 that the logits feel: no ReLU is dead there."""
    program = programs.static(torch.export.load(artifacts.fused).module(), (1, 3, 32, 32))
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    outputs = programs.outputs_of(program.module(), image)
    most = [int(outputs[name].mean((0, 2, 3)).argmax()) for name in ("relu_1", "relu")]
    return (*most, 1, 1)


def change_one_weight(path, artifacts, where, order=(0, 1, 2, 3), precision="fp32"):
    """Change one weight of stage2 in a file that stores the kernel in this order of its dimensions."""
    weights = torch.export.load(artifacts.fused).state_dict["stage2.weight"].permute(order).contiguous()
    kernel = (weights.half() if precision == "fp16" else weights).numpy()
    content = bytearray(path.read_bytes())
    at = content.find(kernel.tobytes())
    assert at >= 0, "the weights are not where the test looks for them"
    index = np.ravel_multi_index([where[dimension] for dimension in order], kernel.shape)
    place = at + int(index) * kernel.itemsize
    struct.pack_into("<e" if precision == "fp16" else "<f", content, place, float(kernel.flat[index]) + 0.5)
    path.write_bytes(content)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_one_weight_in_weight_bin(artifacts, copied, felt, precision, run_check, believed):
    folder = copied("coreml", precision)
    package = folder / "fused.mlpackage"
    change_one_weight(package / "Data/com.apple.CoreML/weights/weight.bin", artifacts, felt, precision=precision)
    with pytest.raises(GateError, match="is not the file that its manifest describes"):
        run_check(folder, "coreml")
    believed(folder, package.name)
    with pytest.raises(GateError) as caught:
        run_check(folder, "coreml")
    assert "both in float32" in str(caught.value), "the converter's gate catches it, whatever half precision loses"
    assert "the first layer that departs is conv2d_1 (stage2)" in str(caught.value)


def test_one_weight_in_an_onnx_file(artifacts, copied, felt, run_check, believed):
    folder = copied("onnx", "fp16")
    change_one_weight(folder / "fused.onnx", artifacts, felt, precision="fp16")
    believed(folder, "fused.onnx")
    with pytest.raises(GateError, match=r"both in float32.* the first layer that departs is conv2d_1 \(stage2\)"):
        run_check(folder, "onnx")


def test_one_weight_in_a_pte(artifacts, copied, felt, run_check, believed):
    folder = copied("executorch")
    change_one_weight(folder / "fused.pte", artifacts, felt, order=(0, 2, 3, 1))
    believed(folder, "fused.pte")
    with pytest.raises(
        GateError, match=r"weights are not those of its program: the first .* is in stage2\.weight, at byte"
    ):
        run_check(folder, "executorch")


def test_swapped_channels_in_the_preprocessing(copied, run_check):
    folder = copied("onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        GateError, match=r"`mean` of the preprocessing is \[0\.1, 0\.2, 0\.3\], but the network was trained"
    ):
        run_check(folder, "onnx")


def other_network(artifacts, folder, change):
    """The artifacts of the toy network with its weights changed by a function of its state."""
    state, header = checkpoints.read(artifacts.checkpoint)
    change(state)
    made = type(artifacts)(folder)
    made.checkpoint.parent.mkdir(parents=True)
    shutil.copy(artifacts.split, made.split)
    checkpoints.write(made.checkpoint, state, header)
    reparameterize.run(NoSettings(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, report=made.report)
    verify.run(Verify(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, output=made.verify)
    return made


def enlarge(state):
    """Activations near 1e5 after the first stage, logits as they were: fine in float32, beyond float16's 65,504."""
    for branch in ("dense", "pointwise"):
        for name in ("weight", "bias"):
            state[f"stage1.{branch}.bn.{name}"] *= 3e4
        state[f"stage2.{branch}.conv.weight"] /= 3e4


@pytest.fixture(scope="module")
def enlarged(artifacts, tmp_path_factory):
    return other_network(artifacts, tmp_path_factory.mktemp("enlarged") / "artifacts", enlarge)


@pytest.mark.parametrize("backend", ["onnx", "coreml", "executorch"])
def test_overflow_in_half_precision(enlarged, tmp_path, backend, run_check):
    export_fused(enlarged, tmp_path, backend, "fp16")
    with pytest.raises(GateError) as caught:
        run_check(tmp_path, backend, enlarged)
    text = str(caught.value)
    assert "fused.pt2 itself overflows in half precision" in text
    assert "The first layer that departs is" in text and "(stage1)" in text
    assert "Try `precision: fp32` in target.yaml" in text


@pytest.mark.parametrize("backend", ["onnx", "coreml", "executorch"])
def test_the_same_network_holds_in_single_precision(enlarged, tmp_path, backend, run_check):
    export_fused(enlarged, tmp_path, backend, "fp32")
    assert run_check(tmp_path, backend, enlarged)["forms"]["fused"]["agreement"] == 1.0


class Unfused(torch.nn.Module):
    """The fused toy, but for the identity branch of its last block, which is still there."""

    def __init__(self, state):
        super().__init__()
        self.state = {name: tensor.clone() for name, tensor in state.items()}
        for channel in range(128):
            self.state["stage3.weight"][channel, channel, 1, 1] -= 1

    def forward(self, image):
        layer = {
            name: (self.state[f"{name}.weight"], self.state[f"{name}.bias"]) for name in ("stage1", "stage2", "stage3")
        }
        relu, conv2d = torch.relu, torch.nn.functional.conv2d
        x = relu(conv2d(image, *layer["stage1"], stride=2, padding=1))
        x = relu(conv2d(x, *layer["stage2"], stride=2, padding=1))
        x = relu(x + conv2d(x, *layer["stage3"], padding=1))
        return torch.nn.functional.linear(
            x.mean((2, 3)), self.state["head.linear.weight"], self.state["head.linear.bias"]
        )


@pytest.mark.parametrize("backend", ["onnx", "coreml", "executorch"])
def test_a_branch_left_unfused(artifacts, copied, backend, run_check, believed):
    """It has as many convolutions, no batch norm, and the very numbers of the fused network."""
    folder = copied(backend)
    name = backends.file_names(backend, ("fused",))[0]
    network = Unfused(torch.export.load(artifacts.fused).state_dict).eval()
    program = torch.export.export(network, (torch.zeros(1, 3, 32, 32),))
    written = json.loads((folder / "manifest.json").read_text())
    spec = ExportSpec("fp32", (1, 3, 32, 32), Preprocessing.from_dict(written["preprocessing"]))
    backends.load(backend).export(program, [folder / name], spec)
    believed(folder, name)
    with pytest.raises(GateError, match="adds branches at 1 places, but the fused network at 0"):
        run_check(folder, backend)


def test_a_truncated_pte(copied, run_check, believed):
    folder = copied("executorch")
    content = (folder / "fused.pte").read_bytes()
    (folder / "fused.pte").write_bytes(content[: len(content) // 2])
    believed(folder, "fused.pte")
    with pytest.raises(InputError, match=r"fused\.pte is cut short: \d+ bytes of \d+"):
        run_check(folder, "executorch")


def test_garbage_with_a_mark_that_is_no_text(copied, run_check, believed):
    """ExecuTorch's runtime ends the whole process on such a file; the check says what is wrong with it."""
    folder = copied("executorch")
    (folder / "fused.pte").write_bytes(bytes([0, 0, 0, 0, 0xFF, 0xFE, 0xFD, 0xFC]) * 512)
    believed(folder, "fused.pte")
    with pytest.raises(InputError, match=r"fused\.pte is not an ExecuTorch program: it starts with b'"):
        run_check(folder, "executorch")


def test_the_runtime_that_aborts_on_garbage_does_not_take_the_pipeline_with_it(tmp_path, monkeypatch):
    """Past our own look at the mark, the runtime aborts its process, and the error says so."""
    from pipeline.backends.worker import client
    from pipeline.errors import StageError

    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/unguarded.py").write_text(
        "from pipeline.backends.executorch import backend as executorch, pte\n"
        "pte.read_whole = lambda file: file.read_bytes()\n"
        "RUNTIME = executorch.RUNTIME\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    garbage = tmp_path / "fused.pte"
    garbage.write_bytes(bytes([0, 0, 0, 0, 0xFF, 0xFE, 0xFD, 0xFC]) * 512)
    with pytest.raises(StageError, match=r"fused\.pte: the process of the pkg\.unguarded runtime died of SIGABRT"):
        client.predict("pkg.unguarded", garbage, torch.zeros(1, 3, 8, 8).numpy())


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "is empty"), (b"not a network at all\n", "does not hold a valid ONNX")]
)
def test_an_onnx_file_that_is_empty_or_text(copied, content, what, run_check, believed):
    folder = copied("onnx")
    (folder / "fused.onnx").write_bytes(content)
    believed(folder, "fused.onnx")
    with pytest.raises(InputError, match=rf"fused\.onnx {what}"):
        run_check(folder, "onnx")


def other_preprocessing(folder, believed):
    """Rewrite what the package's own metadata says of its preprocessing, as an exporter that swaps channels would."""
    from coremltools.proto import Model_pb2

    path = folder / "fused.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    noted = json.loads(model.description.metadata.userDefined["preprocessing"])
    model.description.metadata.userDefined["preprocessing"] = json.dumps({**noted, "mean": [0.3, 0.2, 0.1]})
    path.write_bytes(model.SerializeToString())
    believed(folder, "fused.mlpackage")


def test_swapped_channels_in_a_packages_metadata(copied, run_check, believed):
    folder = copied("coreml", "fp16")
    other_preprocessing(folder, believed)
    with pytest.raises(GateError, match=r"its metadata says that `mean` of the preprocessing is \[0\.3, 0\.2, 0\.1\]"):
        run_check(folder, "coreml")


def test_swapped_channels_inside_a_package(artifacts, tmp_path, run_check, believed):
    """A package that takes an image has mean and std inside: here those of another order of the colours."""
    preprocessing = checkpoints.read_header(artifacts.checkpoint).preprocessing
    program = programs.static(torch.export.load(artifacts.fused).module(), (1, 3, 32, 32))
    export_fused(artifacts, tmp_path, "coreml", "fp32", {"normalization": True})
    assert run_check(tmp_path, "coreml")["forms"]["fused"]["agreement"] == 1.0
    swapped = replace(preprocessing, mean=(0.1, 0.3, 0.6))
    package = tmp_path / "fused.mlpackage"
    backends.load("coreml").export(
        program, [package], ExportSpec("fp32", (1, 3, 32, 32), swapped, {"normalization": True})
    )
    from coremltools.proto import Model_pb2

    path = package / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    noted = json.loads(model.description.metadata.userDefined["preprocessing"])
    told = json.dumps({**noted, "mean": list(preprocessing.mean)})  # so that its metadata does not give it away
    model.description.metadata.userDefined["preprocessing"] = told
    path.write_bytes(model.SerializeToString())
    believed(tmp_path, package.name)
    with pytest.raises(GateError, match=r"both in float32.* The file does not hold the network"):
        run_check(tmp_path, "coreml")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_classifier_that_takes_an_image_is_held_by_all_gates(artifacts, tmp_path, precision, run_check):
    export_fused(artifacts, tmp_path, "coreml", precision, {"normalization": True, "class_labels": True})
    checked = run_check(tmp_path, "coreml")["forms"]["fused"]
    assert 0 < checked["converter"]["max_relative_error"] < {"fp16": 5e-4, "fp32": 1e-5}[precision]
    assert checked["converter"].get("rounded_constants", []) == {"fp16": ["mean and std"], "fp32": []}[precision]
    assert 0 < checked["precision"]["max_relative_error"] < {"fp16": 2e-2, "fp32": 1e-4}[precision]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: b"ftrt" + content[4:], r"was built by TensorRT .*, and TensorRT-RTX is to load it"),
        (
            lambda content: content[:24] + bytes([10, 3, 0, 30]) + content[28:],
            r"was built by TensorRT-RTX 10\.3\.0\.30",
        ),
        (lambda content: content[:2000], r"is cut short: it has 2000 bytes"),
        (lambda content: b"not an engine\n", r"is not a TensorRT engine: it starts with b'not '"),
    ],
    ids=["maker", "version", "truncated", "text"],
)
def test_an_engine_of_another_maker_or_version(copied, change, what, run_check, believed):
    pytest.importorskip("tensorrt_rtx", reason="nothing here builds an engine")
    folder = copied("tensorrt", "fp16", compute_capabilities=["8.9"])
    (folder / "fused.engine").write_bytes(change((folder / "fused.engine").read_bytes()))
    believed(folder, "fused.engine")
    with pytest.raises(InputError, match=what):
        run_check(folder, "tensorrt")
