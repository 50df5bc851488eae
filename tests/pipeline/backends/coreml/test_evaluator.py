import json
import shutil

import numpy as np
import pytest
import torch

from pipeline.backends.coreml import evaluator, values
from pipeline.backends.coreml.packages import open_package
from pipeline.errors import InputError, StageError

WEIGHT = np.random.default_rng(0).normal(size=(6, 3, 3, 3)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)


def network(mb, x):
    y = mb.relu(x=mb.conv(x=x, weight=WEIGHT, name="conv2d"), name="relu")
    return mb.reduce_mean(x=y, axes=[2, 3], name="mean")


@pytest.fixture
def package(written):
    return written(network, X)


@pytest.fixture
def changed(package):
    """Change a package's specification in place; ``change`` gets the model and its operations by output name."""

    def apply(change):
        file = package / "Data/com.apple.CoreML/model.mlmodel"
        model = open_package(package).specification
        block = next(iter(model.mlProgram.functions["main"].block_specializations.values()))
        change(model, {operation.outputs[0].name: operation for operation in block.operations})
        file.write_bytes(model.SerializeToString())
        return package

    return apply


def in_halves(mb, x, then):
    return mb.cast(x=then(mb.cast(x=x, dtype="fp16")), dtype="fp32")


def test_half_precision_is_rounded_after_each_operation_or_not_at_all(computed):
    x = np.array([1.0, 1.0 + 2**-9, 3.0], np.float32)

    def build(mb, x):
        return in_halves(mb, x, lambda half: mb.mul(x=half, y=half))

    (own,), (exact,) = computed(build, x, exact=False), computed(build, x, exact=True)
    half = x.astype(np.float16)
    assert np.array_equal(own, (half * half).astype(np.float32)), "the sum of two halves in half precision"
    assert np.array_equal(exact, x * x) and not np.array_equal(own, exact)


def test_a_cast_to_half_rounds_its_input(computed):
    x = np.array([0.1, 1e-9, 70000.0], np.float32)

    def build(mb, x):
        return in_halves(mb, x, lambda half: mb.identity(x=half))

    expected = torch.from_numpy(x).half().float().numpy()
    assert np.array_equal(computed(build, x, exact=False)[0], expected) and np.isinf(expected[2])
    assert np.array_equal(computed(build, x, exact=True)[0], x)


def test_an_input_of_halves_is_rounded_or_not_at_all(changed):
    def change(model, operations):
        model.mlProgram.functions["main"].inputs[0].type.tensorType.dataType = 10  # FLOAT16

    file, half = changed(change), X.astype(np.float16).astype(np.float32)
    own, exact = (evaluator.load(file, exact) for exact in (False, True))
    whole = evaluator.run(exact, {"x0": half})["mean"]
    assert np.array_equal(evaluator.run(own, {"x0": X})["mean"], whole)
    assert not np.array_equal(evaluator.run(exact, {"x0": X})["mean"], whole)


def test_an_overflow_is_infinite_and_poisons_what_follows(computed):
    x = np.array([300.0, 2.0], np.float32)

    def build(mb, x):
        def then(half):
            square = mb.mul(x=half, y=half)
            return mb.sub(x=square, y=square)

        return in_halves(mb, x, then)

    own = computed(build, x, exact=False)[0]
    assert np.isnan(own[0]) and own[1] == 0
    assert computed(build, x, exact=True)[0].tolist() == [0, 0]


def test_weights_are_taken_as_they_are_stored(computed):
    weight = np.random.default_rng(2).normal(size=(4, 3, 1, 1)).astype(np.float16)

    def build(mb, x):
        return in_halves(mb, x, lambda half: mb.conv(x=half, weight=weight))

    expected = torch.nn.functional.conv2d(torch.from_numpy(X), torch.from_numpy(weight).float()).numpy()
    assert np.array_equal(computed(build, X, exact=True)[0], expected)


@pytest.mark.parametrize(
    ("output", "node"),
    [
        ("relu_1_cast_fp16", "relu_1"),
        ("image_to_fp16", "image"),
        ("linear_0_cast_fp16", "linear"),
        ("conv2d_12", "conv2d_12"),
        ("mean_cast_fp16_cast_fp32", "mean"),
        ("add_cast_fp16_1", "add"),
        ("_native_batch_norm_legit_no_training_3_cast_fp16", "_native_batch_norm_legit_no_training_3"),
        ("_native_batch_norm_legit_no_training_7_batch_norm_1d_cast_fp16", "_native_batch_norm_legit_no_training_7"),
        ("relu_10", "relu_10"),
        ("cast", "cast"),
    ],
)
def test_outputs_are_known_by_the_nodes_they_came_from(output, node):
    assert evaluator.node_name(output) == node


def test_layers_come_in_order_of_execution(package):
    program = evaluator.load(package)
    found = evaluator.layers(program, {"x0": X})
    assert list(found) == ["conv2d", "relu", "mean"]
    convolved = torch.nn.functional.conv2d(torch.from_numpy(X), torch.from_numpy(WEIGHT))
    assert np.allclose(found["conv2d"], convolved, atol=1e-5)
    assert np.allclose(found["relu"], convolved.relu(), atol=1e-5)
    assert np.array_equal(found["mean"], evaluator.run(program, {"x0": X})["mean"])
    assert {str(array.dtype) for array in found.values()} == {"float32"}


def test_values_are_let_go_after_their_last_use(package):
    steps = evaluator.load(package).steps
    assert [(step.name, step.spent) for step in steps] == [
        ("conv2d", ("x0",)),
        ("relu", ("conv2d",)),
        ("mean", ("relu",)),
    ]


def test_a_program_can_be_run_again(package):
    program = evaluator.load(package)
    first, other = (evaluator.run(program, {"x0": image})["mean"] for image in (X, X + 1))
    assert np.array_equal(evaluator.run(program, {"x0": X})["mean"], first)
    assert not np.array_equal(first, other)


def test_inputs_are_held_against_the_declaration(package):
    program = evaluator.load(package)
    with pytest.raises(InputError, match=r"built\.mlpackage takes `x0` of shape \[1, 3, 8, 8\], not \[1, 3, 8, 9\]"):
        evaluator.run(program, {"x0": np.zeros((1, 3, 8, 9), np.float32)})
    with pytest.raises(InputError, match=r"takes \['x0'\], not \['image'\]"):
        evaluator.run(program, {"image": X})


def test_an_unknown_operation_is_named(changed):
    file = changed(lambda model, operations: setattr(operations["relu"], "type", "non_zero"))
    message = r"built\.mlpackage: the operation `relu` \(non_zero\) is not one that the evaluator knows\. Check .* Mac"
    with pytest.raises(StageError, match=message):
        evaluator.load(file)


def test_an_unknown_input_of_an_operation_is_named(changed):
    def change(model, operations):
        operations["relu"].inputs["leak"].CopyFrom(operations["relu"].inputs["x"])

    with pytest.raises(StageError, match=r"the operation `relu` \(relu\) has an input `leak` that the evaluator does"):
        evaluator.load(changed(change))


def test_an_unknown_attribute_of_an_operation_is_named(changed):
    def change(model, operations):
        operations["relu"].attributes["leak"].CopyFrom(operations["relu"].attributes["name"])

    with pytest.raises(StageError, match=r"the operation `relu` \(relu\) has an input `leak` that"):
        evaluator.load(changed(change))


def test_an_unknown_value_of_an_attribute_is_named(changed):
    def change(model, operations):
        (kind,) = (one for one in operations.values() if one.outputs[0].name.startswith("conv2d_pad_type"))
        kind.attributes["val"].immediateValue.tensor.strings.values[0] = "odd"

    program = evaluator.load(changed(change))
    with pytest.raises(StageError, match=r"the operation `conv2d` \(conv\) cannot be computed: KeyError: 'odd'"):
        evaluator.run(program, {"x0": X})


def test_an_operation_without_what_it_needs_is_named(changed):
    file = changed(lambda model, operations: operations["conv2d"].inputs.pop("weight"))
    with pytest.raises(InputError, match=r"`conv2d` \(conv\) is incomplete: missing a required argument: 'weight'"):
        evaluator.load(file)


def test_a_shape_that_is_not_the_declared_one_is_named(changed):
    def change(model, operations):
        operations["relu"].outputs[0].type.tensorType.dimensions[2].constant.size = 7

    program = evaluator.load(changed(change))
    message = (
        r"the operation `relu` \(relu\) gives a shape of \[1, 6, 6, 6\], but the package declares one of \[1, 6, 7, 6\]"
    )
    with pytest.raises(StageError, match=message):
        evaluator.run(program, {"x0": X})


def test_a_rank_that_is_not_the_declared_one_is_named(changed):
    def change(model, operations):
        del operations["mean"].outputs[0].type.tensorType.dimensions[1]

    program = evaluator.load(changed(change))
    with pytest.raises(StageError, match=r"`mean` \(reduce_mean\) gives a shape of \[1, 6\], but .* one of \[1\]"):
        evaluator.run(program, {"x0": X})


def test_a_type_that_is_not_the_declared_one_is_named(changed):
    def change(model, operations):
        operations["relu"].outputs[0].type.tensorType.dataType = 23  # INT32

    program = evaluator.load(changed(change))
    with pytest.raises(StageError, match=r"`relu` \(relu\) gives float32, but the package declares int32"):
        evaluator.run(program, {"x0": X})


def test_a_size_that_is_declared_unknown_may_be_anything(changed):
    def change(model, operations):
        for holder in (model.mlProgram.functions["main"].inputs[0], operations["conv2d"].outputs[0]):
            holder.type.tensorType.dimensions[3].unknown.variadic = False
        operations["relu"].outputs[0].type.tensorType.dimensions[3].unknown.variadic = True

    program = evaluator.load(changed(change))
    assert program.inputs["x0"].shape == (1, 3, 8, None)
    assert evaluator.run(program, {"x0": np.ones((1, 3, 8, 11), np.float32)})["mean"].shape == (1, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, operations: model.ClearField("mlProgram"), "holds no ML program"),
        (lambda model, operations: model.mlProgram.functions.clear(), "holds no ML program"),
        (
            lambda model, operations: setattr(model.description, "defaultFunctionName", "other"),
            "is damaged: it has no function `other`",
        ),
        (
            lambda model, operations: setattr(model.mlProgram.functions["main"], "opset", "CoreML1"),
            "is damaged: its function `main` has no block for CoreML1",
        ),
        (
            lambda model, operations: (
                model.mlProgram.functions["main"].block_specializations["CoreML7"].ClearField("operations")
            ),
            "is damaged: its function `main` computes nothing",
        ),
        (
            lambda model, operations: setattr(operations["relu"].inputs["x"].arguments[0], "name", "nothing"),
            "is damaged: `relu` needs `nothing`, which nothing gives",
        ),
        (
            lambda model, operations: setattr(operations["mean"].outputs[0], "name", "other"),
            "is damaged: nothing gives its output `mean`",
        ),
    ],
)
def test_an_empty_or_broken_specification_is_refused(changed, change, message):
    with pytest.raises(InputError, match=rf"built\.mlpackage {message}.*again"):
        evaluator.load(changed(change))


WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def test_missing_weights_are_refused(package):
    (package / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"weight\.bin cannot be read: No such file"):
        evaluator.load(package)


def test_truncated_weights_are_refused(package):
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(InputError, match=r"weight\.bin is damaged: it ends at byte \d+, but bytes .* are needed"):
        evaluator.load(package)


def test_weights_of_another_network_are_refused(package, written):
    other = written(lambda mb, x: mb.conv(x=x, weight=WEIGHT[:, :, :2]), X, name="other")
    shutil.copy(other / WEIGHTS, package / WEIGHTS)
    with pytest.raises(InputError, match=r"has 432 bytes, but 162 numbers of float32 are expected"):
        evaluator.load(package)


@pytest.mark.parametrize(
    "path", ["@model_path/weights/../weights/weight.bin", "@model_path/other.bin", "/etc/hostname"]
)
def test_weights_that_the_manifest_does_not_name_are_refused(changed, path):
    def change(model, operations):
        for operation in operations.values():
            value = operation.attributes["val"] if operation.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = path

    with pytest.raises(InputError, match=rf"its weights are said to be in {path}, which Manifest\.json does not name"):
        evaluator.load(changed(change))


def test_a_manifest_without_the_weights_is_refused(package):
    manifest = json.loads((package / "Manifest.json").read_text())
    root = manifest["rootModelIdentifier"]
    manifest["itemInfoEntries"] = {root: manifest["itemInfoEntries"][root]}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"which Manifest\.json does not name\. Copy the whole folder again"):
        evaluator.load(package)


def test_no_manifest(package):
    (package / "Manifest.json").unlink()
    with pytest.raises(InputError, match=r"is not a Core ML package: Manifest\.json: No such file"):
        evaluator.load(package)


def test_a_constant_that_does_not_fill_its_type_is_refused(changed):
    def change(model, operations):
        (axes,) = (one for name, one in operations.items() if name.startswith("mean_axes"))
        axes.attributes["val"].immediateValue.tensor.ints.values.append(1)

    with pytest.raises(
        InputError, match=r"is damaged: of the constant `mean_axes_0`, it holds 3 numbers, but its type"
    ):
        evaluator.load(changed(change))


def test_a_type_that_is_not_computed_with_is_named(changed):
    def change(model, operations):
        operations["relu"].outputs[0].type.tensorType.dataType = 13

    with pytest.raises(StageError, match=r"the output `relu` cannot be computed: its data type, bfloat16, is not one"):
        evaluator.load(changed(change))


def test_types_have_carriers():
    assert {name: str(values.carried(name)).removeprefix("torch.") for name in values.KINDS} == {
        **{name: "uint8" for name in ("uint1", "uint2", "uint3", "uint4", "uint6", "uint8")},
        **{name: name for name in ("bool", "float32", "float64", "int8", "int16", "int32", "int64")},
        **{"float16": "float32", "int4": "int8", "uint16": "int32", "uint32": "int64"},
    }
