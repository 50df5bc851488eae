import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pipeline.artifacts import digests
from pipeline.backends.onnx import backend
from pipeline.errors import InputError, StageError
from pipeline.models import programs as programs_of
from tests.fixtures.onnx_functions import with_functions
from tests.fixtures.quantizable_networks import in_int8

FORMS = ("fused", "branched")
TOLERANCE = {"fp32": 1e-6, "fp16": 5e-3}


@pytest.fixture(scope="module")
def onnx_files(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    files = {(precision, form): folder / f"{precision}-{form}.onnx" for precision in TOLERANCE for form in FORMS}
    for (precision, form), file in files.items():
        assert backend.export(programs[form], [file], spec(precision)) == {"opset": 18}
    return files


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_numbers_of_the_file_are_those_of_the_program(onnx_files, programs, image, precision, form):
    logits = backend.open_session(onnx_files[precision, form], threads=1)(image.numpy())[0]
    expected = programs[form].module()(image).detach().numpy()
    assert logits.dtype == np.float32 and logits.shape == (1, 5)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[precision]
    if precision == "fp16":
        assert error > TOLERANCE["fp32"], "the arithmetic was not float16"


def test_census_tells_fused_from_branched(onnx_files):
    fused, branched = (backend.census(onnx_files["fp32", form]) for form in FORMS)
    assert (fused["convolution"], fused["batch_norm"], fused["total"]) == (3, 0, 9)
    # The exporter folds the 6 batch norms behind convolutions; the one alone stays.
    assert (branched["convolution"], branched["batch_norm"], branched["Add"]) == (6, 1, 4)


@pytest.mark.parametrize("open_session", [backend.open_session, backend.open_check_session, backend.open_exact_session])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_file_with_functions_is_read_as_the_plain_graph(onnx_files, image, tmp_path, precision, open_session):
    plain, file = onnx_files[precision, "branched"], tmp_path / "functions.onnx"
    model = onnx.load(plain)
    with_functions(model)
    onnx.save(model, file)
    assert len(model.functions) > 2 and not {"Conv", "Relu"} & {node.op_type for node in model.graph.node}
    assert (backend.census(file), backend.signature(file)) == (backend.census(plain), backend.signature(plain))
    np.testing.assert_array_equal(open_session(file, 1)(image.numpy())[0], open_session(plain, 1)(image.numpy())[0])
    layers = zip(*(backend.outputs_by_layer(one, image.numpy()).values() for one in (file, plain)), strict=True)
    for found, wanted in layers:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_input_and_output_are_named_float32_and_of_the_given_shape(onnx_files, precision):
    graph = backend.check(onnx_files[precision, "fused"]).graph
    ends = [(end.name, end.type.tensor_type.elem_type) for end in (*graph.input, *graph.output)]
    assert ends == [("image", 1), ("logits", 1)]
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]


def test_a_float16_file_carries_its_precision(onnx_files):
    weights = [w for w in backend.check(onnx_files["fp16", "fused"]).graph.initializer if len(w.dims) == 4]
    assert len(weights) == 3 and {weight.data_type for weight in weights} == {10}


@pytest.mark.slow
def test_same_program_same_bytes_in_another_process(onnx_files, program_files, elsewhere):
    again = elsewhere("onnx", program_files["fused"], "fp16", {}) / "fused.onnx"
    assert digests.digest(again) == digests.digest(onnx_files["fp16", "fused"])


def test_the_file_names_no_path_of_this_machine(onnx_files):
    content = onnx_files["fp32", "branched"].read_bytes()
    for trace in (str(Path(__file__).parents[4]), sys.prefix, "site-packages", ".py"):
        assert trace.encode() not in content


def test_another_shape_than_the_files_own_is_refused(onnx_files):
    run = backend.open_session(onnx_files["fp32", "fused"], threads=1)
    with pytest.raises(InputError, match=re.escape("takes an input of shape (1, 3, 16, 16), but got (2, 3, 16, 16)")):
        run(np.zeros((2, 3, 16, 16), np.float32))


@pytest.mark.parametrize("use", [backend.census, lambda file: backend.open_session(file, 1)], ids=["census", "open"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"epoch 1: accuracy 97.3 %\n" * 9, "does not hold a valid ONNX model"),
        (b"\xff\xfe\x80\x81" * 64, "does not hold a valid ONNX model"),
        (0.6, "does not hold a valid ONNX model"),
    ],
    ids=["empty", "text", "garbage", "truncated"],
)
def test_a_bad_file_is_named(onnx_files, tmp_path, use, content, told):
    whole = onnx_files["fp32", "fused"].read_bytes()
    file = tmp_path / "bad.onnx"
    file.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    with pytest.raises(InputError, match=rf"bad\.onnx {told}.*run the export again"):
        use(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.onnx cannot be read: No such file"):
        backend.census(tmp_path / "gone.onnx")


def test_an_unsupported_operation_is_named(unsupported, spec, tmp_path):
    with pytest.raises(StageError, match=r"cannot be written as ONNX: .*linalg_matrix_exp.* Replace the operation"):
        backend.export(unsupported, [tmp_path / "x.onnx"], spec())
    assert not (tmp_path / "x.onnx").exists()


def test_importing_the_backends_imports_nothing_heavy():
    names = [f"pipeline.backends.{name}.backend" for name in ("onnx", "executorch", "coreml", "tensorrt")]
    code = f"import sys, json, {', '.join(names)}; print(json.dumps(list(sys.modules)))"
    project = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "coremltools", "executorch", "tensorrt_rtx", "PIL"}
    assert not heavy & set(json.loads(done.stdout))


def test_every_layer_is_named_after_the_node_of_the_program_it_came_from(onnx_files, programs, image):
    for precision in TOLERANCE:
        layers = backend.outputs_by_layer(onnx_files[precision, "fused"], image.numpy(), exact=True)
        want = _values(programs["fused"], image)
        assert [name for name in layers if name in want] == [name for name in want if name in layers]
        assert {name for name in want if name.startswith(("conv2d", "relu", "linear"))} <= set(layers)
        for name in set(layers) & set(want):
            assert np.abs(layers[name] - want[name]).max() < TOLERANCE[precision] * 2 * np.abs(want[name]).max(), name


def test_a_batch_norm_that_the_exporter_folds_gives_its_name_to_the_convolution(onnx_files, programs, image):
    layers = backend.outputs_by_layer(onnx_files["fp32", "branched"], image.numpy())
    want = _values(programs["branched"], image)
    shared = [name for name in want if name in layers]
    assert [f"batch_norm_{index}" if index else "batch_norm" for index in range(7)] == [
        name for name in shared if name.startswith("batch_norm")
    ]
    assert {"add", "add_1", "add_2", "add_3", "relu_2", "linear"} <= set(shared)
    for name in shared:
        assert np.abs(layers[name] - want[name]).max() < 1e-5 * np.abs(want[name]).max(), name


def test_several_operations_of_one_node_are_told_apart(tmp_path, spec):
    class Several(torch.nn.Module):
        def forward(self, x):
            left, right = torch.nn.functional.gelu(x, approximate="tanh").chunk(2, dim=2)
            return (left * right).flatten(1)

    x = torch.randn(1, 3, 16, 16)
    program = torch.export.export(Several().eval(), (x,))
    backend.export(program, [tmp_path / "x.onnx"], spec())
    layers = backend.outputs_by_layer(tmp_path / "x.onnx", x.numpy())
    want = _values(program, x)
    np.testing.assert_allclose(layers["gelu"], want["gelu"], atol=1e-6)
    np.testing.assert_allclose(layers["mul"], want["mul"], atol=1e-6)
    assert len([name for name in layers if name.startswith("gelu")]) > 1
    names = [node.name for node in backend.check(tmp_path / "x.onnx").graph.node]
    assert len(set(names)) == len(names)


def test_a_linear_layer_of_a_map_reads_int8_weights(tmp_path, spec):
    """It is written as MatMul, and no Transpose stands between it and its integers."""

    class ChannelsLast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.wide, self.narrow = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 9), torch.nn.Linear(9, 4)

        def forward(self, x):
            x = self.first(x).permute(0, 2, 3, 1)
            return self.narrow(self.wide(x).relu()).mean((1, 2))

    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    program = in_int8(ChannelsLast().eval(), images)
    backend.export(program, [tmp_path / "x.onnx"], spec("int8"))
    counts = backend.census(tmp_path / "x.onnx")
    assert counts["int8"] == programs_of.count(program)["int8"] == 3 and counts["MatMul"] == 2
    stored = backend.check(tmp_path / "x.onnx").graph.initializer
    assert [list(one.dims) for one in stored if one.name.endswith("_turned")] == [[6, 9], [9, 4]]
    got = backend.open_session(tmp_path / "x.onnx", 1)(images[:1].numpy())[0]
    want = program.module()(images[:1]).detach().numpy()
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_exact_is_float32_on_the_weights_as_stored(onnx_files, programs, image):
    rounded = copy.deepcopy(programs["fused"].module()).half().float()
    image = image.half().float()
    want = rounded(image).detach().numpy()
    error = {
        name: np.abs(opened(onnx_files["fp16", "fused"], 1)(image.numpy()) - want).max() / np.abs(want).max()
        for name, opened in (("exact", backend.open_exact_session), ("own", backend.open_check_session))
    }
    assert error["exact"] < 1e-5 < error["own"]
    layers = backend.outputs_by_layer(onnx_files["fp16", "fused"], image.numpy(), exact=True)
    assert np.abs(layers["linear"] - want).max() < 1e-5 * np.abs(want).max()


def test_the_check_rounds_what_each_operation_gives(onnx_files, image):
    layers = backend.outputs_by_layer(onnx_files["fp16", "fused"], image.numpy())
    for name, value in layers.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, value.astype(np.float16).astype(np.float32), err_msg=name)
    logits = backend.open_check_session(onnx_files["fp16", "fused"], 1)(image.numpy())[0]
    np.testing.assert_allclose(logits, layers["linear"], atol=1e-3 * np.abs(logits).max())


def test_an_overflow_of_float16_shows_in_the_check_alone(programs, spec, image, tmp_path):
    model = copy.deepcopy(programs["fused"].module())
    with torch.no_grad():
        for name, scale in (("0.weight", 2e5), ("0.bias", 2e5), ("2.weight", 1e-5)):
            model.get_parameter(name).mul_(scale)
    backend.export(torch.export.export(model, (image,)), [tmp_path / "x.onnx"], spec("fp16"))
    for opened, holds in ((backend.open_exact_session, True), (backend.open_check_session, False)):
        assert np.isfinite(opened(tmp_path / "x.onnx", 1)(image.numpy())).all() == holds
    layers = backend.outputs_by_layer(tmp_path / "x.onnx", image.numpy())
    assert next(name for name, value in layers.items() if not np.isfinite(value).all()) == "conv2d"


def test_the_layers_of_a_bad_file_or_image_are_refused(onnx_files, image, tmp_path):
    (tmp_path / "bad.onnx").write_text("text")
    with pytest.raises(InputError, match=r"bad\.onnx does not hold a valid ONNX model"):
        backend.outputs_by_layer(tmp_path / "bad.onnx", image.numpy())
    with pytest.raises(InputError, match=re.escape("takes an input of shape (1, 3, 16, 16), but got (1, 3, 8, 8)")):
        backend.outputs_by_layer(onnx_files["fp32", "fused"], image.numpy()[..., :8, :8])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_an_open_batch_takes_any_within_its_bounds(programs, spec, tmp_path, precision):
    file = tmp_path / "open.onnx"
    backend.export(programs["branched"], [file], spec(precision, dynamic_batch={"min": 1, "opt": 2, "max": 5}))
    ends = backend.check(file).graph.input[0], backend.check(file).graph.output[0]
    sizes = [[size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim] for end in ends]
    assert sizes == [["batch", 3, 16, 16], ["batch", 5]]
    run, checked = backend.open_session(file, 1), backend.open_check_session(file, 1)
    alone = programs["branched"].module()
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        want = torch.cat([alone(one[None]) for one in images]).detach().numpy()
        for session in (run, checked):
            assert np.abs(session(images.numpy())[0] - want).max() / np.abs(want).max() < TOLERANCE[precision]
    with pytest.raises(InputError, match=re.escape("takes an input of shape (None, 3, 16, 16), but got (1, 3, 8, 8)")):
        run(np.zeros((1, 3, 8, 8), np.float32))


def test_a_batch_outside_of_an_open_ones_bounds_is_refused(programs, spec, tmp_path):
    with pytest.raises(InputError, match="`batch` is 1, which is not within `dynamic_batch`, 2 to 4"):
        backend.export(programs["fused"], [tmp_path / "x"], spec(dynamic_batch={"min": 2, "opt": 2, "max": 4}))


def _values(program, image):
    """What each node of a program gives, by its name."""
    found = {}

    class Noting(torch.fx.Interpreter):
        def run_node(self, node):
            found[node.name] = super().run_node(node)
            return found[node.name]

    with torch.inference_mode():
        Noting(program.module()).run(image)
    return {
        name: value.detach().numpy() for name, value in found.items() if isinstance(value, torch.Tensor) and name != "x"
    }
