"""Core ML on a Mac and on an iPhone, as far as a machine without either can tell.

What is called exists in the installed coremltools, with the arguments that it is called with. The phone itself, and
Core ML's own library, are stood in for; benchmarker, compute plan, packages and arrays are coremltools' own.
"""

import asyncio
import inspect
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backends.coreml import compute_plan, export, iphone, packages, runtime, sessions
from pipeline.backends.coreml.options import Options
from pipeline.errors import InputError, StageError
from pipeline.quiet import quiet

off_a_mac = pytest.mark.skipif(platform.system() == "Darwin", reason="says what a machine without Core ML is told")
TEAM = {"device": "iphone", "development_team": "A1B2C3D4E5"}
HOW_LONG = {"warmup_seconds": 0, "min_runs": 12, "max_seconds": 0}


@pytest.fixture(scope="module")
def files(programs, spec, tmp_path_factory):
    """Packages by name: for a Mac, the same on the CPU alone, for an iPhone, and one that takes an image."""
    folder = tmp_path_factory.mktemp("running")
    wanted = {
        "mac": ("fused", {}),
        "cpu": ("fused", {"compute_units": "CPU_ONLY"}),
        "fused": ("fused", TEAM),
        "branched": ("branched", TEAM),
        "image": ("fused", {**TEAM, "normalization": True}),
    }
    made = {name: folder / f"{name}.mlpackage" for name in wanted}
    for name, (form, options) in wanted.items():
        export.export(programs[form], [made[name]], spec("fp16", **options))
    return made


def described(file):
    return packages.read(file).description


# Options


def test_a_package_notes_how_it_is_to_be_run(files):
    assert runtime.how(described(files["mac"])) == dict(runtime.HOW)
    assert runtime.how(described(files["cpu"])) == {**runtime.HOW, "compute_units": "CPU_ONLY"}
    assert runtime.how(described(files["fused"])) == {**runtime.HOW, **TEAM}


def test_a_package_that_notes_nothing_runs_on_all_units_of_a_mac(files):
    description = described(files["fused"])
    for name in runtime.HOW:
        description.metadata.userDefined.pop(name)
    assert runtime.how(description) == {"compute_units": "ALL", "device": "mac", "development_team": ""}


def test_options_are_those_that_a_package_notes():
    assert {name: value or "" for name, value in Options().model_dump().items() if name in runtime.HOW} == dict(
        runtime.HOW
    )
    assert set(runtime.HOW) <= set(Options.model_fields)
    with quiet():
        import coremltools
    choices = Options.model_fields["compute_units"].annotation.__args__
    assert set(choices) == {unit.name for unit in coremltools.ComputeUnit}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "iphone"}, "device: iphone needs development_team"),
        ({**TEAM, "normalization": True}, "device: iphone needs normalization: false"),
        ({"compute_units": "NE"}, "compute_units"),
        ({"device": "ipad"}, "device"),
    ],
)
def test_options_that_cannot_work_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Options(**options)


# What is called is there


def test_everything_called_exists_with_the_arguments_that_it_is_called_with():
    with quiet():
        import coremltools
        from coremltools.models.compute_plan import MLComputePlan
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
        from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device, DeviceType

    anything = object()
    signatures = {
        coremltools.models.MLModel: ("path", {"compute_units": 1, "skip_model_load": True}),
        coremltools.models.MLModel.predict: (anything, {"data": {}}),
        coremltools.models.MLModel.get_compiled_model_path: (anything, {}),
        MLComputePlan.load_from_path: ("path", {"compute_units": 1}),
        MLComputePlan.get_compute_device_usage_for_mlprogram_operation: (anything, {"operation": 1}),
        MLComputePlan.get_estimated_cost_for_mlprogram_operation: (anything, {"operation": 1}),
        Device.get_connected_devices: (DeviceType.IPHONE, {}),
        Device.prepare_for_model_debugging: (anything, {"credentials": 1}),
        AppSigningCredentials: None,
        MLModelBenchmarker: (anything, {"device": 1}),
        MLModelBenchmarker.benchmark_predict: (anything, {"inputs": {}, "iterations": 5, "warmup": True}),
        MLModelBenchmarker.benchmark_operation_execution: (anything, {"inputs": {}, "iterations": 5, "warmup": True}),
    }
    for called, arguments in signatures.items():
        if arguments is not None:
            inspect.signature(called).bind(arguments[0], **arguments[1])
    for awaited in ("benchmark_predict", "benchmark_operation_execution"):
        assert inspect.iscoroutinefunction(getattr(MLModelBenchmarker, awaited))
    assert inspect.iscoroutinefunction(Device.prepare_for_model_debugging)
    assert AppSigningCredentials(development_team="A1B2C3D4E5").development_team == "A1B2C3D4E5"
    assert {"samples", "statistics"} <= set(MLModelBenchmarker.Measurement.__dataclass_fields__)
    assert {"spec", "compute_device_usage", "measurement"} <= set(
        MLModelBenchmarker.OperationExecutionInfo.__dataclass_fields__
    )


def test_every_unit_has_a_name():
    with quiet():
        from coremltools.models import compute_device
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

    kinds = compute_device.MLComputeDevice.__subclasses__()
    found = set()
    for kind in kinds:
        device = object.__new__(kind)  # it would want Core ML's own object
        found.add(runtime.unit_of(MLComputePlanDeviceUsage(device, [device])))
    assert found == {"CPU", "GPU", "NeuralEngine"}
    assert runtime.unit_of(None) is None


# Off a Mac


@off_a_mac
@pytest.mark.parametrize("name", ["mac", "fused"])
def test_off_a_mac_everything_says_what_is_missing_and_what_to_do(files, image, name):
    told = r"cannot be run: Core ML runs on Apple's systems alone, and this is \w+\. .*on a Mac"
    with pytest.raises(StageError, match=told):
        runtime.open_session(files[name], 1)
    with pytest.raises(StageError, match=told):
        compute_plan.profile(files[name], 1, image.numpy(), 3)


@off_a_mac
def test_off_a_mac_an_iphone_cannot_be_timed(files, image):
    forms = {form: files[form] for form in ("fused", "branched")}
    with pytest.raises(StageError, match="Core ML runs on Apple's systems alone"):
        iphone.time_files(forms, image.numpy(), **HOW_LONG)


@off_a_mac
def test_a_mac_without_xcode_is_told_so(files, image, monkeypatch):
    """The answer is coremltools' own: `devicectl` is not here either."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(
        StageError, match=r"cannot measure on the iPhone: The 'devicectl' command is required.*`device: mac`"
    ):
        iphone.time_files({"fused": files["fused"]}, image.numpy(), **HOW_LONG)


def test_packages_for_a_mac_are_timed_the_ordinary_way(files, image):
    assert iphone.time_files({"fused": files["mac"], "branched": files["cpu"]}, image.numpy(), **HOW_LONG) is None


def test_packages_for_different_devices_are_refused(files, image):
    with pytest.raises(InputError, match="different devices"):
        iphone.time_files({"fused": files["fused"], "branched": files["mac"]}, image.numpy(), **HOW_LONG)


# Where only the phone and Core ML's library are stood in for


class Phone:
    """The packages that it was given, run by the evaluator; a run takes the milliseconds that are said."""

    def __init__(self, plan=None):
        self.plan, self.fed, self.loaded, self.runs = plan, [], [], 0

    async def create(self, model, device):
        self.loaded.append((model, device))
        return self

    def make_state_if_needed(self):
        return None

    async def predict(self, inputs, state):
        self.fed.append(inputs)
        self.runs += 1

    @property
    def last_predict_duration_in_nano_seconds(self):
        return self.runs * 1_000_000

    async def retrieve_compute_plan(self):
        return self.plan


@pytest.fixture
def connected(monkeypatch):
    """An iPhone that coremltools finds and prepares, and what it is asked for."""
    with quiet():
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
        from coremltools.models.ml_program.experimental.remote_device import Device, DeviceState, DeviceType

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    about = {"name": "Anna's iPhone", "type": DeviceType.IPHONE, "state": DeviceState.CONNECTED, "session": None}
    rest = dict.fromkeys(("identifier", "udid", "os_version", "os_build_number", "developer_mode_state"), "")
    devices, signed, stand_in = [Device(**about, **rest)], [], Phone()

    async def prepare(self, credentials=None, working_directory=None, clean=False):
        signed.append(credentials)
        return self

    monkeypatch.setattr(Device, "get_devices", staticmethod(lambda: devices))
    monkeypatch.setattr(Device, "prepare_for_model_debugging", prepare)
    monkeypatch.setattr(MLModelBenchmarker, "_create_loaded_model", staticmethod(stand_in.create))
    return devices, signed, stand_in


def test_forms_are_timed_in_turn_on_the_phone(files, image, connected):
    devices, signed, stand_in = connected
    forms = {form: files[form] for form in ("fused", "branched")}
    taken = iphone.time_files(forms, image.numpy(), **HOW_LONG)
    assert {form: [len(block) for block in rounds] for form, rounds in taken.items()} == {
        form: [5, 5, 5] for form in forms
    }
    # a warm-up of two runs each, then of each form one run that does not count and five that do
    assert taken["fused"][0] == [6, 7, 8, 9, 10] and taken["branched"][0] == [12, 13, 14, 15, 16]
    assert taken["fused"][1] == [18, 19, 20, 21, 22]
    assert [one.development_team for one in signed] == [TEAM["development_team"]]
    assert [device for _, device in stand_in.loaded] == devices * 2, "each form is loaded once"
    assert all(np.array_equal(fed["image"], image.numpy()) for fed in stand_in.fed)


def test_the_phone_gets_bytes_in_the_order_that_it_is_told(files, image, connected):
    mixed = np.asfortranarray(image.numpy())
    iphone.time_files({"fused": files["fused"]}, mixed, **HOW_LONG)
    fed = connected[2].fed[0]["image"]
    assert not mixed.flags.c_contiguous and fed.flags.c_contiguous
    assert np.array_equal(fed, mixed) and fed.dtype == np.float32


@pytest.mark.parametrize("number", [0, 2])
def test_no_iphone_or_two_is_told(files, image, connected, number):
    devices = connected[0]
    devices[:] = devices * number
    with pytest.raises(StageError, match=r"one connected iPhone, and there is (none|Anna's iPhone, ).*Developer Mode"):
        iphone.time_files({"fused": files["fused"]}, image.numpy(), **HOW_LONG)


def test_a_package_that_takes_an_image_is_not_sent_to_a_phone(files, image, connected):
    with pytest.raises(InputError, match=r"image, and coremltools sends an iPhone arrays.*normalization: false"):
        iphone.time_files({"fused": files["image"]}, image.numpy(), **HOW_LONG)
    with pytest.raises(InputError, match="normalization: false"):
        compute_plan.profile(files["image"], 1, image.numpy(), 3)


def test_rounds_go_on_for_the_time_and_warm_up_before_it():
    now, calls = [0.0], []

    def form(name):
        async def predict(iterations):
            calls.append((name, iterations))
            now[0] += 1
            return [1.0] * iterations

        return predict

    forms = {"a": form("a"), "b": form("b")}
    how = {"warmup_seconds": 2, "min_runs": 1, "max_seconds": 6, "clock": lambda: now[0]}
    taken = asyncio.run(iphone.in_turn(forms, **how))
    assert calls[:4] == [("a", 1), ("a", 5), ("b", 1), ("b", 5)]
    assert calls[4:] == [("a", 5), ("b", 5)] * 3
    assert {name: len(rounds) for name, rounds in taken.items()} == {"a": 3, "b": 3}


class Library:
    """Core ML's own part of a compute plan: convolutions on the Neural Engine, each a tenth; the rest unknown."""

    def __init__(self, model_structure):
        self.model_structure = model_structure

    def get_compute_device_usage_for_mlprogram_operation(self, operation):
        from coremltools.models.compute_device import MLNeuralEngineComputeDevice
        from coremltools.models.compute_plan import MLComputePlanDeviceUsage

        device = object.__new__(MLNeuralEngineComputeDevice)
        return MLComputePlanDeviceUsage(device, [device]) if "conv" in operation.operator_name else None

    def get_estimated_cost_for_mlprogram_operation(self, operation):
        from coremltools.models.compute_plan import MLComputePlanCost

        return MLComputePlanCost(0.1) if "conv" in operation.operator_name else None


def plan_of(file):
    """A compute plan as coremltools gives it, of all operations of a package, constants included."""
    from coremltools.models import compute_plan as theirs

    def operations(specification):
        (block,) = specification.mlProgram.functions["main"].block_specializations.values()
        for one in block.operations:
            outputs = [theirs.MLModelStructureProgramNamedValueType(each.name, None) for each in one.outputs]
            kind = one.type if one.type == "const" else f"ios16.{one.type}"
            yield theirs.MLModelStructureProgramOperation({}, kind, outputs, [], None)

    block = theirs.MLModelStructureProgramBlock([], list(operations(packages.read(file))), [])
    program = theirs.MLModelStructureProgram({"main": theirs.MLModelStructureProgramFunction([], block)})
    plan = object.__new__(theirs.MLComputePlan)
    plan.__proxy__ = Library(theirs.MLModelStructure(neuralnetwork=None, program=program, pipeline=None))
    return plan


@pytest.fixture
def mac(monkeypatch):
    """A Mac whose Core ML plans for any package what `plan_of` gives, and runs at once; what it was asked for."""
    with quiet():
        from coremltools.models import compute_plan as theirs
        from coremltools.models.model import MLModel

    asked = {"plan": [], "predict": []}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(MLModel, "get_compiled_model_path", lambda self: self.package_path)
    monkeypatch.setattr(MLModel, "predict", lambda self, data, state=None: asked["predict"].append(data))

    def load_from_path(path, compute_units):
        asked["plan"].append(compute_units.name)
        return plan_of(Path(path))

    monkeypatch.setattr(theirs.MLComputePlan, "load_from_path", load_from_path)
    return asked


def test_a_mac_tells_the_unit_and_the_cost_of_each_operation(files, image, mac):
    found = compute_plan.profile(files["cpu"], 1, image.numpy(), 3)
    assert mac["plan"] == ["CPU_ONLY"]
    assert len(mac["predict"]) == 4, "one run that does not count"
    assert all(np.array_equal(one["image"], image.numpy()) for one in mac["predict"])
    census = packages.census(files["cpu"])
    assert len(found) == census["total"]
    convolutions = [one for one in found if one["kind"] == "convolution"]
    assert len(convolutions) == census["convolution"] == 3
    assert all((one["unit"], one["cost"]) == ("NeuralEngine", 0.1) and one["ms"] > 0 for one in convolutions)
    others = [one for one in found if one["kind"] != "convolution"]
    assert others and all((one["unit"], one["cost"], one["ms"]) == (None, None, 0) for one in others)
    assert [one["kind"] for one in found].count("linear") == 1


def test_a_plan_has_the_names_of_the_evaluator(files, image, mac):
    found = compute_plan.profile(files["mac"], 1, image.numpy(), 1)
    assert set(sessions.outputs_by_layer(files["mac"], image.numpy())) <= {one["name"] for one in found}


def test_a_depthwise_convolution_is_told(spec, image, tmp_path, mac):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.Conv2d(6, 6, 3, groups=6), torch.nn.Flatten()
    )
    program = torch.export.export(net.eval(), (image,))
    export.export(program, [tmp_path / "x.mlpackage"], spec("fp32"))
    found = compute_plan.profile(tmp_path / "x.mlpackage", 1, image.numpy(), 1)
    assert [one["kind"] for one in found if one["unit"]] == ["convolution", "depthwise"]


def test_a_plan_that_core_ml_does_not_give_is_told(files, image, monkeypatch):
    """The answer is coremltools' own, where Core ML's library is missing."""
    with quiet():
        from coremltools.models.model import MLModel

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(MLModel, "get_compiled_model_path", lambda self: "compiled.mlmodelc")
    with pytest.raises(StageError, match=r"no plan for .*mac\.mlpackage: MLComputePlan is not supported.*macOS 14\.4"):
        compute_plan.profile(files["mac"], 1, image.numpy(), 3)


def test_the_plan_of_an_iphone_shares_out_what_it_costs(files, image, connected):
    connected[2].plan = plan_of(files["fused"])
    found = compute_plan.profile(files["fused"], 1, image.numpy(), 4)
    convolutions = [one for one in found if one["kind"] == "convolution"]
    assert len(convolutions) == 3 and len(found) == packages.census(files["fused"])["total"]
    assert [one["cost"] for one in convolutions] == pytest.approx([1 / 3] * 3)
    assert [one["ms"] for one in convolutions] == pytest.approx([0.1 * np.mean([2, 3, 4, 5])] * 3)
    assert all(one["unit"] == "NeuralEngine" for one in convolutions)
    assert all((one["cost"], one["ms"]) == (None, 0) for one in found if one["kind"] != "convolution")
    assert connected[2].runs == 5, "one run that does not count"


@pytest.mark.parametrize("use", ["session", "profile"])
def test_a_damaged_package_is_told_before_core_ml_sees_it(files, tmp_path, image, use):
    bad = tmp_path / "bad.mlpackage"
    shutil.copytree(files["mac"], bad)
    (bad / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"")
    with pytest.raises(InputError, match="holds no ML program"):
        runtime.open_session(bad, 1) if use == "session" else compute_plan.profile(bad, 1, image.numpy(), 1)
