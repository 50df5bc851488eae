import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import ExportSpec
from pipeline.backends.coreml import backend, export
from pipeline.errors import InputError, StageError
from tests.fixtures.quantizable_networks import in_int8

FORMS = ("fused", "branched")
ENDS = {"normalization": True, "class_labels": True}


@pytest.fixture(scope="module")
def mlpackages(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml")
    wanted = {
        "fused": ("fused", spec("fp16")),
        "branched": ("branched", spec("fp32", minimum_deployment_target="iOS17")),
        "ends": ("fused", spec("fp16", **ENDS)),
    }
    files = {name: folder / f"{name}.mlpackage" for name in wanted}
    facts = {name: backend.export(programs[form], [files[name]], s) for name, (form, s) in wanted.items()}
    return files, facts


def specification(package: Path):
    from coremltools.proto import Model_pb2

    return Model_pb2.Model.FromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())


def test_facts_name_the_maker_the_target_and_both_ends(mlpackages):
    fused, branched, ends = (mlpackages[1][name] for name in ("fused", "branched", "ends"))
    assert fused["maker"] == "coremltools" and fused["version"]
    assert (fused["minimum_deployment_target"], fused["specification_version"]) == ("iOS16", 7)
    assert (branched["minimum_deployment_target"], branched["specification_version"]) == ("iOS17", 8)
    assert fused["inputs"] == {"image": "multiArrayType"}
    assert fused["outputs"] == {"logits": "multiArrayType"}
    assert ends["inputs"] == {"image": "imageType"}
    assert ends["outputs"] == {"label": "stringType", "label_probs": "dictionaryType"}


def test_input_and_output_of_a_float16_package_are_float32(mlpackages):
    from coremltools.proto import FeatureTypes_pb2

    description = specification(mlpackages[0]["fused"]).description
    for end in (*description.input, *description.output):
        assert end.type.multiArrayType.dataType == FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert list(description.input[0].type.multiArrayType.shape) == [1, 3, 16, 16]


def test_weights_have_the_precision_that_was_asked_for(mlpackages):
    sizes = {name: (mlpackages[0][name] / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for name in FORMS}
    parameters = 3 * 16 * 9 + 16 * 16 * 9 + 16 * 24 * 9
    assert 2 * parameters < sizes["fused"] < 3.5 * parameters
    assert sizes["branched"] > 4 * parameters


def test_census_tells_fused_from_branched(mlpackages):
    fused, branched = (backend.census(mlpackages[0][name]) for name in FORMS)
    assert (fused["convolution"], fused["batch_norm"]) == (3, 0)
    assert (
        fused["total"]
        == sum(count for name, count in fused.items() if name not in ("convolution", "batch_norm", "total"))
        - fused["batch_norm"]
    )
    assert (branched["convolution"], branched["add"]) == (6, 4)
    assert branched["batch_norm"] == 1


def test_normalization_and_labels_are_in_the_package(mlpackages):
    operations = backend.census(mlpackages[0]["ends"])
    assert (operations["sub"], operations["softmax"], operations["classify"]) == (1, 1, 1)
    assert operations["batch_norm"] == 0, "a batch norm adds an epsilon"
    description = specification(mlpackages[0]["ends"]).description
    image = description.input[0].type.imageType
    assert (image.width, image.height, image.colorSpace) == (16, 16, image.ColorSpace.Value("RGB"))
    assert description.predictedFeatureName == "label"


def test_normalization_inside_gives_what_normalized_input_gives(programs, spec):
    wanted = spec("fp32", normalization=True, class_labels=True)
    whole = export._with_ends(programs["fused"], wanted, dict(wanted.options))
    pixels = torch.randint(0, 256, (1, 3, 16, 16)).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (wanted.preprocessing.mean, wanted.preprocessing.std))
    expected = programs["fused"].module()((pixels / 255 - mean) / std).softmax(-1)
    assert torch.allclose(whole.module()(pixels), expected, rtol=1e-5, atol=1e-6)


def test_a_package_carries_its_preprocessing(mlpackages, spec):
    about = specification(mlpackages[0]["ends"]).description.metadata.userDefined
    preprocessing = json.loads(about["preprocessing"])
    assert preprocessing["mean"] == list(spec().preprocessing.mean)
    assert preprocessing["classes"] == list(spec().preprocessing.classes)
    assert (about["precision"], about["normalization"]) == ("fp16", "inside")
    assert not [key for key in about if "date" in key]


def test_only_what_belongs_in_a_package_is_in_it_and_can_be_read(mlpackages):
    package = mlpackages[0]["fused"]
    data = "Data/com.apple.CoreML"
    found = sorted(path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file())
    assert found == [f"{data}/model.mlmodel", f"{data}/weights/weight.bin", "Manifest.json"]
    for path in (package, *package.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
    manifest = json.loads((package / "Manifest.json").read_text())
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]


def test_coremltools_reads_the_package_and_leaves_it_as_it_is(mlpackages):
    from pipeline.quiet import quiet

    before = digests.digest(mlpackages[0]["ends"])
    with quiet():
        import coremltools

        model = coremltools.models.MLModel(str(mlpackages[0]["ends"]), skip_model_load=True)
    assert model.short_description == "Image classifier, 5 classes, fp16"
    assert digests.digest(mlpackages[0]["ends"]) == before


@pytest.mark.slow
def test_same_program_same_content_in_another_process(mlpackages, program_files, elsewhere):
    again = elsewhere("coreml", program_files["fused"], "fp16", ENDS) / "fused.mlpackage"
    assert digests.digest(again) == digests.digest(mlpackages[0]["ends"])


def test_the_package_names_no_path_of_this_machine(mlpackages):
    content = (mlpackages[0]["branched"] / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
    for trace in (str(Path(__file__).parents[4]), sys.prefix, "site-packages", ".py"):
        assert trace.encode() not in content


def test_labels_that_do_not_fit_the_network_are_refused(programs, spec, tmp_path):
    good = spec(class_labels=True)
    bad = replace(good, preprocessing=replace(good.preprocessing, classes=("cat", "dog")))
    with pytest.raises(InputError, match="the data has 2 classes, but the network has 5 outputs"):
        backend.export(programs["fused"], [tmp_path / "x.mlpackage"], bad)


def test_an_image_input_takes_one_image(programs, spec, tmp_path):
    one = spec(normalization=True)
    two = ExportSpec("fp32", (2, 3, 16, 16), one.preprocessing, one.options)
    with pytest.raises(InputError, match="one image at a time, but `batch` is 2"):
        backend.export(programs["fused"], [tmp_path / "x.mlpackage"], two)


def test_an_unsupported_operation_is_named(unsupported, spec, tmp_path):
    with pytest.raises(StageError, match=r"cannot convert the network: .*linalg_matrix_exp.* Replace the operation"):
        backend.export(unsupported, [tmp_path / "x.mlpackage"], spec())


@pytest.mark.parametrize("place", ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"])
@pytest.mark.parametrize(
    "content", [None, b"", b"not a model", b"\xff\xfe\x80\x81" * 64], ids=["gone", "empty", "text", "garbage"]
)
def test_a_bad_package_is_named(mlpackages, tmp_path, place, content):
    package = tmp_path / "bad.mlpackage"
    for path in mlpackages[0]["fused"].rglob("*"):
        if path.is_file():
            copy = package / path.relative_to(mlpackages[0]["fused"])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    if content is None:
        (package / place).unlink()
    else:
        (package / place).write_bytes(content)
    with pytest.raises(
        InputError, match=r"bad\.mlpackage (is not a Core ML package|is damaged|holds no ML program).*again"
    ):
        backend.census(package)


@pytest.mark.skipif(platform.system() == "Darwin", reason="says what a machine without Core ML is told")
def test_off_a_mac_the_runtime_is_unavailable_and_says_what_to_do(mlpackages):
    missing = backend.unavailable()
    assert "Core ML runs on Apple's systems alone" in missing.reason and "Mac" in missing.remedy
    with pytest.raises(StageError, match=r"cannot be run: Core ML runs on Apple's systems alone"):
        backend.open_session(mlpackages[0]["fused"], 1)


@pytest.mark.skipif(platform.system() != "Darwin", reason="needs Core ML")
@pytest.mark.parametrize("name", ["fused", "ends"])
def test_numbers_on_a_mac(mlpackages, programs, image, name):
    logits = backend.open_session(mlpackages[0][name], 1)(image.numpy())[0]
    expected = programs["fused"].module()(image).detach().numpy()
    assert np.argmax(logits) == np.argmax(expected)


def test_a_second_name_of_a_tensor_is_converted(spec, tmp_path):
    """`run_decompositions` leaves one where a network returns a part of what it computed as it is."""

    class Alias(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)

        def forward(self, x):
            return self.head(torch.ops.aten.alias(self.conv(x)).mean((2, 3)))

    program = torch.export.export(Alias().eval(), (torch.zeros(1, 3, 16, 16),))
    backend.export(program, [tmp_path / "x.mlpackage"], spec("fp32"))
    image = torch.randn(1, 3, 16, 16)
    got = backend.open_exact_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0]
    np.testing.assert_allclose(got, program.module()(image).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_a_pool_without_a_stride_steps_by_its_size(spec, tmp_path, kind):
    pool = getattr(torch.nn.functional, f"{kind}_pool2d")

    class Pool(torch.nn.Module):
        def forward(self, x):
            return torch.cat([pool(x, 2).flatten(1), pool(x, (3, 2), padding=1).flatten(1)], 1)

    image = torch.randn(1, 3, 16, 16)
    program = torch.export.export(Pool().eval(), (image,))
    backend.export(program, [tmp_path / "x.mlpackage"], spec("fp32"))
    got = backend.open_exact_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0]
    np.testing.assert_allclose(got, program.module()(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_batch_norm_after_a_transposed_convolution_stays_what_it_is(spec, tmp_path, randomise, groups):
    """coremltools mixes up the channels where it folds one into a transposed convolution of several groups."""
    layers = torch.nn.Conv2d(3, 8, 1), torch.nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=groups), torch.nn.BatchNorm2d(8)
    network = randomise(torch.nn.Sequential(*layers, torch.nn.Flatten())).eval()
    image = torch.randn(1, 3, 16, 16)
    backend.export(torch.export.export(network, (image,)), [tmp_path / "x.mlpackage"], spec("fp32"))
    got = backend.open_exact_session(tmp_path / "x.mlpackage", 1)(image.numpy())[0]
    np.testing.assert_allclose(got, network(image).detach(), rtol=1e-4, atol=1e-5)


def test_sums_in_int8_keep_the_scales_of_the_program(spec, tmp_path):
    """coremltools would divide them all by that of the second summand, and round the quotients to half."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1)
            self.head = torch.nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.head(x + self.second(x).relu()).mean((2, 3))

    program = in_int8(Residual().eval(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    package = tmp_path / "x.mlpackage"
    backend.export(program, [package], spec("int8", minimum_deployment_target="iOS17"))
    (function,) = specification(package).mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    values = {
        operation.outputs[0].name: np.frombuffer(
            operation.attributes["val"].immediateValue.tensor.bytes.values, np.float16
        )
        for operation in block.operations
        if operation.type == "const"
    }
    in_file = {
        values[operation.inputs["scale"].arguments[0].name].item()
        for operation in block.operations
        if operation.type in ("quantize", "dequantize")
    }
    own = [node.args[1] for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert in_file == {float(np.float16(one)) for one in own}
