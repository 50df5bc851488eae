"""Int8 files of the toy network, from one program for every target: what they hold, and what is caught of them."""

import json
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
import torch

from pipeline import backends
from pipeline.artifacts import digests, documents
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import ExportSpec, Preprocessing, read_json
from pipeline.backends.worker import client
from pipeline.config.stages import BenchSettings, ExportSettings
from pipeline.config.targets import Bench, Check
from pipeline.data.splits import open_split
from pipeline.errors import GateError, InputError
from pipeline.models import program_file, programs
from pipeline.stages import bench, export
from pipeline.verification import gates
from pipeline.verification.reference import Reference, spec_of
from tests.fixtures.documents import write_check

pytestmark = pytest.mark.slow
BACKENDS = ("executorch", "onnx", "coreml")
OPTIONS = {"coreml": {"minimum_deployment_target": "iOS17"}}


def run_export(artifacts, folder, backend, names=("quantized", "fused"), **paths):
    folder.mkdir(parents=True, exist_ok=True)
    export.run(
        ExportSettings(target=f"{backend}-int8", model="toy", backend=backend, precision="int8", forms=names, batch=1,
                       image_size=None, options=OPTIONS.get(backend, {})),
        **{"checkpoint": artifacts.checkpoint, "fused": artifacts.fused, "verify": artifacts.verify,
           "quantized": artifacts.quantized, "manifest": folder / "manifest.json", **paths},
    )  # fmt: skip
    return folder


@pytest.fixture
def copied(exported_toy, tmp_path):
    """A function: a copy of the folder of a backend: quantized, and fused as its baseline."""

    def copy(backend):
        source = exported_toy(backend, "int8", ("quantized", "fused"), **OPTIONS.get(backend, {}))
        return shutil.copytree(source, tmp_path / backend / "toy")

    return copy


@pytest.fixture
def made(copied):
    """Such a folder of each backend."""
    return {backend: copied(backend) for backend in BACKENDS}


def file_of(folder, backend, form="quantized"):
    return folder / backends.load(backend).file_name(form)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_one_program_gave_every_file(made, quantized):
    manifests = [manifest_of(folder) for folder in made.values()]
    assert {manifest["lineage"]["quantized"] for manifest in manifests} == {digests.digest(quantized)}
    precisions = [[entry["precision"] for entry in manifest["forms"].values()] for manifest in manifests]
    assert precisions == [["int8", "fp32"], ["int8", "fp32"], ["int8", "fp16"]]
    assert all(list(manifest["forms"]) == ["quantized", "fused"] for manifest in manifests)


def test_the_files_are_smaller_than_their_baselines(made):
    for folder in made.values():
        sizes = [
            sum(one["size_bytes"] for one in form["files"].values()) for form in manifest_of(folder)["forms"].values()
        ]
        assert sizes[0] < 0.6 * sizes[1]


def test_xnnpack_computes_all_of_it(made):
    facts = manifest_of(made["executorch"])["forms"]["quantized"]["facts"]
    assert facts["fully_delegated"] and facts["delegate_calls"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_held(made, quantized, run_check, backend):
    checked = run_check(made[backend], backend, quantized=quantized)
    found = checked["forms"]["quantized"]
    assert (found["census"]["convolution"], found["census"]["int8"]) == (3, 4)
    assert checked["forms"]["fused"]["census"]["int8"] == 0
    assert found["converter"]["mean_relative_error"] < 2e-3 and found["converter"]["images"] == 64
    assert found["precision"]["max_relative_error"] <= 5 / 127
    assert found["agreement"] == 1 - len(found["precision"]["flips"]) / checked["images"]
    assert checked["accuracy"]["file"] == found["accuracy"]
    assert checked["forms"]["fused"]["converter"]["max_relative_error"] < 1e-5, "the baseline is held as any float file"


def stayed_float(folder, backend):
    source, target = (file_of(folder, backend, form) for form in ("fused", "quantized"))
    (shutil.copytree if source.is_dir() else shutil.copy)(
        source, target, **({"dirs_exist_ok": True} if source.is_dir() else {})
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_stayed_float_is_caught(copied, quantized, run_check, believed, backend):
    folder = copied(backend)
    stayed_float(folder, backend)
    believed(folder, file_of(folder, backend).name)
    with pytest.raises(GateError, match=r"computes 0 convolutions and linear layers in int8, but the program .* of 4"):
        run_check(folder, backend, quantized=quantized)


def in_float(quantized, layer):
    """The int8 program with one convolution whose weight is a float: what an exporter that gave up would write."""
    module = programs.graph_module(program_file.read(quantized)[0])
    node = next(node for node in module.graph.nodes if node.name == layer)
    source = node.args[1]
    tensors = dict(module.named_buffers())
    weight, scale = (tensors[one.target] for one in source.args[:2])
    module.register_buffer("plain", weight.float() * scale.view(-1, 1, 1, 1))
    with module.graph.inserting_before(source):
        plain = module.graph.get_attr("plain")
    plain.meta["val"] = source.meta["val"]
    source.replace_all_uses_with(plain)
    module.recompile()
    return programs.static(module, (1, 3, 32, 32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_layer_that_stayed_float_is_caught(copied, quantized, run_check, believed, backend):
    folder = copied(backend)
    manifest = manifest_of(folder)
    spec = ExportSpec(
        "int8", (1, 3, 32, 32), Preprocessing.from_dict(manifest["preprocessing"]), OPTIONS.get(backend, {})
    )
    file = file_of(folder, backend)
    backends.load(backend).export(in_float(quantized, "conv2d_1"), [file], spec)
    believed(folder, file.name)
    with pytest.raises(GateError, match=r"computes 3 convolutions and linear layers in int8, but the program .* of 4"):
        run_check(folder, backend, quantized=quantized)


def tensors_of(quantized):
    """Weight, scales and activation scales of the second convolution."""
    program, _ = program_file.read(quantized)
    node = next(node for node in program.graph.nodes if node.name == "conv2d_1")
    names = program.graph_signature.inputs_to_buffers
    weight, scale = (program.state_dict[names[one.name]] for one in node.args[1].args[:2])
    return weight, scale, node.args[0].args[1]


def overwrite(path, before, after):
    """Change bytes of a file, which must be there once or more."""
    content = path.read_bytes()
    assert before != after and before in content, "the numbers are not where the test looks for them"
    path.write_bytes(content.replace(before, after))


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_weights_are_caught(copied, quantized, run_check, believed, backend):
    """Every eighth kernel of stage2 with its signs turned."""
    folder = copied(backend)
    weight = tensors_of(quantized)[0]
    changed = weight.clone()
    changed[::8] = -changed[::8]
    order = (0, 2, 3, 1) if backend == "executorch" else (0, 1, 2, 3)
    before, after = (one.permute(order).contiguous().numpy().tobytes() for one in (weight, changed))
    file = file_of(folder, backend)
    overwrite(file / "Data/com.apple.CoreML/weights/weight.bin" if file.is_dir() else file, before, after)
    believed(folder, file.name)
    layer = r"_1 \(stage2\)"
    named = {"executorch": "that differs is in _frozen_param1 of dequantize_per_channel", "coreml": "departs is conv2d"}
    where = named.get(backend, "departs is dequantize_per_channel") + layer
    with pytest.raises(GateError, match="does not hold the integers that it was made from: .*" + where):
        run_check(folder, backend, quantized=quantized)


@pytest.mark.parametrize("backend", ["executorch", "onnx"])
def test_another_scale_is_caught(copied, quantized, run_check, believed, backend):
    folder = copied(backend)
    scale = tensors_of(quantized)[1]
    file = file_of(folder, backend)
    overwrite(file, scale.numpy().tobytes(), (scale * 1.1).numpy().tobytes())
    believed(folder, file.name)
    with pytest.raises(GateError, match="does not hold the integers that it was made from"):
        run_check(folder, backend, quantized=quantized)


def test_the_tolerance_is_held_and_names_a_layer(made, quantized, run_check):
    with pytest.raises(GateError, match=r"tolerance for int8 is 1e-30\. "):
        run_check(made["coreml"], "coreml", quantized=quantized, tolerance=1e-30)


def test_a_class_that_differs_is_a_tie_or_is_caught(artifacts, quantized, copied):
    """Of a file that adds 0.55 of their gap to two logits and turns their order round; a rounding may differ too."""
    folder = copied("onnx")
    written = documents.read(Manifest, folder / "manifest.json")
    reference = Reference(quantized, open_split(artifacts.split), spec_of(written, written.preprocessing))
    largest, (second, first) = np.abs(reference.numbers).max(), reference.numbers[0].argsort()[-2:]
    gap = (reference.numbers[0, first] - reference.numbers[0, second]) / largest
    shift = np.zeros(reference.numbers.shape[1], np.float32)
    shift[[first, second]] = -0.55 * gap * largest, 0.55 * gap * largest
    file = file_of(folder, "onnx")
    model = onnx.load(file)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift, "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], ["logits"]))
    onnx.save(model, file)

    def checked(tolerance):
        predict = partial(client.predict, "onnx", file)
        limits = Check(tolerance=float(tolerance))
        return gates.CheckedFile("onnx", limits, file, "quantized", reference, False, predict)

    with pytest.raises(
        GateError, match=r"image \d+ is of class \d, but by quantized\.pt2 of class \d, whose logit is "
    ):
        checked(0.95 * gap).check_precision(0.0)
    assert len(checked(1.2 * gap).check_precision(0.0).flips) >= 1


def test_the_bench_tells_what_int8_gained(artifacts, quantized, copied, tmp_path, capsys):
    folder = copied("onnx")
    write_check(folder, "ONNX Runtime", fused=artifacts.fused, quantized=quantized)
    quick = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, launches=(1, 1))
    bench.run(
        BenchSettings(backend="onnx", bench=quick),
        manifest=folder / "manifest.json", check=folder / "check.json",
        files=[file_of(folder, "onnx", form) for form in ("quantized", "fused")], fused=artifacts.fused,
        quantized=quantized, output=folder / "bench.json",
        profile=folder / "profile.json",
    )  # fmt: skip
    measured, profile = read_json(folder / "bench.json"), read_json(folder / "profile.json")
    assert list(measured["forms"]) == ["quantized", "fused"] and measured["precision"] == "int8"
    assert "; quantized is " in (told := capsys.readouterr().out) and " times as fast as fused" in told
    assert profile["form"] == "quantized"


def test_a_lost_accuracy_says_what_to_try(artifacts, quantized, run_check, tmp_path):
    """Of an int8 program that knows one class alone; its file is faithful to it."""
    program, lineage = program_file.read(quantized)
    with torch.no_grad():
        program.state_dict["head.linear.bias"][int(np.bincount(_labels(artifacts)).argmin())] += 1e3
    torch.export.save(program, tmp_path / "one.pt2", extra_files={"lineage.json": json.dumps(lineage)})
    folder = run_export(artifacts, tmp_path / "toy", "onnx", names=("quantized",), quantized=tmp_path / "one.pt2")
    with pytest.raises(GateError, match=r"quantize\.max_float_layers.*quantize\.qat_epochs.*qarepvgg_a0"):
        run_check(folder, "onnx", quantized=tmp_path / "one.pt2")


def _labels(artifacts):
    preprocessing = Preprocessing.from_dict(read_json(artifacts.verify)["preprocessing"])
    return torch.cat([labels for _, labels in open_split(artifacts.split).batches("val", preprocessing, 64)]).numpy()


def test_layers_of_a_quantized_program_have_names(quantized):
    module = programs.of_form("quantized", None, None, quantized)
    titles = [programs.title(module, node.name) for node in module.graph.nodes]
    assert {
        "conv2d_1 (stage2)", "dequantize_per_channel_1 (stage2)", "quantize_per_tensor",
        "quantize_per_tensor_2 (stage2)", "dequantize_per_tensor_2 (stage2)", "linear (head.linear)",
    } <= set(titles)  # fmt: skip
    assert programs.reader(module, "_frozen_param2") == "_frozen_param2 of dequantize_per_channel_2 (stage3)"
    assert programs.reader(module, "stage1.bias") == "stage1.bias"


def test_without_the_program_nothing_is_exported(artifacts, quantized, tmp_path):
    with pytest.raises(InputError, match=r"int8 files are made of quantized.*, but none was given"):
        run_export(artifacts, tmp_path, "onnx", quantized=None)


def test_a_program_of_another_network_is_refused(artifacts, quantized, tmp_path):
    program, _ = program_file.read(artifacts.fused)
    torch.export.save(program, tmp_path / "fused.pt2")
    with pytest.raises(InputError, match=r"verify\.json is of another fused\.pt2"):
        run_export(artifacts, tmp_path / "toy", "onnx", fused=tmp_path / "fused.pt2")
