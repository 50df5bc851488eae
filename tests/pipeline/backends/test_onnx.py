import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.backends import onnx as backend
from pipeline.errors import InputError, StageError

FORMS = ("fused", "branched")
TOLERANCE = {"fp32": 1e-6, "fp16": 5e-3}


@pytest.fixture(scope="module")
def exported(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    files = {(precision, form): folder / f"{precision}-{form}.onnx" for precision in TOLERANCE for form in FORMS}
    for (precision, form), file in files.items():
        assert backend.export(programs[form], [file], spec(precision)) == {"opset": 18}
    return files


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_numbers_of_the_file_are_those_of_the_program(exported, programs, image, precision, form):
    logits = backend.open_session(exported[precision, form], threads=1)(image.numpy())
    expected = programs[form].module()(image).detach().numpy()
    assert logits.dtype == np.float32 and logits.shape == (1, 5)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[precision]
    if precision == "fp16":
        assert error > TOLERANCE["fp32"], "the arithmetic was not float16"


def test_census_tells_fused_from_branched(exported):
    fused, branched = (backend.census(exported["fp32", form]) for form in FORMS)
    assert (fused["convolution"], fused["batch_norm"], fused["total"]) == (3, 0, 9)
    # The exporter folds the 6 batch norms behind convolutions; the one alone stays.
    assert (branched["convolution"], branched["batch_norm"], branched["Add"]) == (6, 1, 4)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_input_and_output_are_named_float32_and_of_the_given_shape(exported, precision):
    graph = backend.check(exported[precision, "fused"]).graph
    ends = [(end.name, end.type.tensor_type.elem_type) for end in (*graph.input, *graph.output)]
    assert ends == [("image", 1), ("logits", 1)]
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]


def test_a_float16_file_carries_its_precision(exported):
    weights = [w for w in backend.check(exported["fp16", "fused"]).graph.initializer if len(w.dims) == 4]
    assert len(weights) == 3 and {weight.data_type for weight in weights} == {10}


@pytest.mark.slow
def test_same_program_same_bytes_in_another_process(exported, program_files, elsewhere):
    again = elsewhere("onnx", program_files["fused"], "fp16", {}) / "fused.onnx"
    assert store.digest(again) == store.digest(exported["fp16", "fused"])


def test_the_file_names_no_path_of_this_machine(exported):
    content = exported["fp32", "branched"].read_bytes()
    for trace in (str(Path(__file__).parents[3]), sys.prefix, "site-packages", ".py"):
        assert trace.encode() not in content


def test_another_shape_than_the_files_own_is_refused(exported):
    run = backend.open_session(exported["fp32", "fused"], threads=1)
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
def test_a_bad_file_is_named(exported, tmp_path, use, content, told):
    whole = exported["fp32", "fused"].read_bytes()
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
    names = [f"pipeline.backends.{name}" for name in ("onnx", "executorch", "coreml", "tensorrt")]
    code = f"import sys, json, {', '.join(names)}; print(json.dumps(list(sys.modules)))"
    project = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "coremltools", "executorch", "tensorrt_rtx", "PIL"}
    assert not heavy & set(json.loads(done.stdout))
