"""Every backend keeps the contract of pipeline/backends/base.py: what it tells is of one kind, and holds."""

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import backends
from pipeline.artifacts.manifest import Unavailable
from pipeline.backends import signatures
from pipeline.backends.base import Backend, BundleParts
from pipeline.backends.runtime import Runtime
from pipeline.backends.worker import client, remote, server
from pipeline.cli import requirements
from pipeline.config.schema import Strict
from pipeline.config.targets import PRECISIONS
from pipeline.devices import facts
from pipeline.errors import InputError
from pipeline.models import programs as graphs
from pipeline.quantization import pt2e
from pipeline.verification import compare
from repnets.fusion.capture import capture
from repnets.quantization import ranges
from tests.fixtures.layers import Layers

NAMES = backends.names()
LOADED = {name: backends.load(name) for name in NAMES}
WRITERS = [name for name in NAMES if LOADED[name].export]
TARGETS = [name for name in NAMES if LOADED[name].rules]
FLOATS = ("fp32", "fp16")


@pytest.fixture(scope="session")
def int8_program(programs, image):
    """The fused network in int8."""
    return in_int8(programs["fused"], image)


@pytest.fixture(scope="session")
def written(programs, int8_program, spec, tmp_path_factory):
    """Export a precision by a backend: the first file, and what its exporter tells."""
    made = {}

    def write(name, precision):
        if (name, precision) not in made:
            backend, folder = LOADED[name], tmp_path_factory.mktemp(name)
            program = int8_program if precision == "int8" else programs["fused"]
            options = backend.rules.options().model_dump(mode="json") if backend.rules else {}
            if backend.rules and precision in backend.rules.at_least:
                options |= dict([backend.rules.at_least[precision]])
            files = [folder / file.format(form="fused") for file in backend.files()]
            made[name, precision] = files, backend.export(program, files, spec(precision, **options)), options
        return made[name, precision]

    return write


@pytest.fixture(scope="session")
def hard_in_int8(image):
    """In int8, by name, what runtimes write each their own way: a program and its convolutions and int8 layers.

    Transposed convolutions, plain, before a ReLU6, and of two groups, which stays in float; and a batch norm that stays
    beside another reader of its convolution.
    """
    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 8, 3, 4), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    up = (nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU6(),
          nn.ConvTranspose2d(6, 8, 2, groups=2))  # fmt: skip
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_var, 2, 3)
    block = Layers(lambda own, x: x + own.conv(own.norm(x).relu()), norm=norm, conv=nn.Conv2d(8, 8, 3, padding=1))
    layers = {
        "transposed": (stem, nn.ReLU(), *up, *head),
        "pre-activation": (stem, block, *head),
    }
    return {name: in_int8(capture(nn.Sequential(*ones).eval(), image), image) for name, ones in layers.items()}


def in_int8(program, image):
    """A program in int8, as the stage `quantize` makes it, with the ranges of one image."""
    prepared = pt2e.prepare(pt2e.network(program))
    found = pt2e.simulation(prepared)
    ranges.set_activations(ranges.observe(found, [image]), "max")
    ranges.set_weights(found, "max")
    made = pt2e.convert(prepared, found, (2, *image.shape[1:]))
    return graphs.static(made.module(), tuple(image.shape))


def precisions(name):
    """Those that a backend writes in; of one that is no target, the float ones."""
    return LOADED[name].rules.precisions if LOADED[name].rules else FLOATS


CASES = [(name, precision) for name in WRITERS for precision in precisions(name)]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_backend_tells_is_of_its_type(name):
    backend = LOADED[name]
    assert isinstance(backend, Backend) and isinstance(backend.runtime, Runtime)
    assert backend.name == name and backend.title and backend.checked_by
    assert (Path(backends.__file__).parent / name / "backend.py").exists()
    for field in ("suffixes", "packages", "run_by", "extras", "requirements", "stands_in_for"):
        assert isinstance(getattr(backend, field), tuple), field
    for part in (backend, backend.runtime):
        for field in dataclasses.fields(part):
            if "Callable" in str(field.type) or field.name == "export":
                assert getattr(part, field.name) is None or callable(getattr(part, field.name)), field.name
    missing = backend.unavailable()
    assert missing is None or (isinstance(missing, Unavailable) and missing.reason and missing.remedy)


@pytest.mark.parametrize("name", NAMES)
def test_what_belongs_together_is_there_together(name):
    backend = LOADED[name]
    assert bool(backend.export) == bool(backend.files()), "who writes names its files"
    assert bool(backend.extras) == bool(backend.write_extras)
    if backend.rules:
        assert backend.export and backend.bundle and backend.can_run_on and backend.requirements
        assert backend.traced is None or "runner" in backend.rules.device_programs
        ways = (backend.served or backend.traced or backend.built) is not None
        assert ways == (backend.rules.not_on_devices == "")
    assert backend.float_beside_int8 in FLOATS
    assert backend.runtime.open_exact_session or backend.float_beside_int8 == "fp32", "int8 is held in float32"


def test_no_suffix_is_read_by_two():
    claimed = [suffix for backend in LOADED.values() for suffix in backend.suffixes]
    assert len(claimed) == len(set(claimed)) and dict(backends.suffixes()).keys() == set(claimed)


def test_some_backend_stands_in_for_each_precision():
    assert [backends.stand_in(precision).export is not None for precision in ("fp32", "int8")] == [True, True]


@pytest.mark.parametrize("name", TARGETS)
def test_the_rules_of_a_target(name):
    rules = LOADED[name].rules
    assert issubclass(rules.options, Strict) and rules.options()
    assert set(rules.precisions) <= set(PRECISIONS) and set(rules.candidates) <= set(rules.precisions)
    assert rules.float_of_baseline in rules.precisions
    for precision, (key, value) in rules.at_least.items():
        assert precision in rules.precisions and key in rules.options.model_fields
        rules.options(**{key: value})


@pytest.mark.parametrize("name", WRITERS)
def test_file_names_are_asked_for_and_not_fixed_at_import(name, monkeypatch):
    backend = LOADED[name]
    names = backend.file_names(["fused", "branched"])
    assert len(names) == len(set(names)) == 2 * len(backend.files()) + len(backend.extras)
    assert names[0] == backend.file_name("fused")
    monkeypatch.setenv("PATH", "/nowhere")
    assert backend.file_name("fused") == names[0], "what a runtime opens depends on no program"


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_written_file_is_the_network(written, int8_program, programs, image, name, precision):
    """Every file is written, read, counted, inspected, run as `check` runs it, and computes what its program does."""
    backend = LOADED[name]
    if precision in ("w8", "w4", "palette6"):
        pytest.skip("compressed weights need a network with some; tests/pipeline/backends/coreml/test_compression.py")
    program = int8_program if precision == "int8" else programs["fused"]
    files, facts, _ = written(name, precision)
    assert all(file.exists() for file in files) and isinstance(facts, dict)
    found = signatures.read(files[0])
    assert (found.input.shape, [one.shape for one in found.outputs]) == (tuple(image.shape), [(1, 5)])
    census, wanted = backend.census(files[0]), graphs.count(program)
    assert {key: census[key] for key in ("convolution", "batch_norm", "join", "int8")} == {
        key: wanted[key] for key in ("convolution", "batch_norm", "join", "int8")
    }
    assert census["total"] > 0
    got = client.predict(name, files[0], image.numpy())
    want = program.module()(image).detach().numpy()
    assert compare.compare(got, want).relative_error <= compare.TOLERANCE[precision]


@pytest.mark.parametrize(("network", "convolutions", "int8"), [("transposed", 4, 4), ("pre-activation", 2, 3)])
@pytest.mark.parametrize("name", [name for name in TARGETS if "int8" in precisions(name)])
def test_a_file_in_int8_has_the_layers_and_numbers_of_its_program(
    hard_in_int8, image, spec, tmp_path, name, network, convolutions, int8
):
    backend, program = LOADED[name], hard_in_int8[network]
    options = backend.rules.options().model_dump(mode="json")
    options |= dict([*filter(None, [backend.rules.at_least.get("int8")])])
    files = [tmp_path / file.format(form="quantized") for file in backend.files()]
    backend.export(program, files, spec("int8", **options))
    census, wanted = backend.census(files[0]), graphs.count(program)
    assert (wanted["convolution"], wanted["int8"]) == (convolutions, int8)
    assert convolutions <= census["convolution"] <= convolutions + wanted["batch_norm"] and census["int8"] == int8
    got, want = client.predict(name, files[0], image.numpy()), program.module()(image).numpy()
    assert compare.compare(got, want).relative_error <= compare.TOLERANCE["int8"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_and_its_data_files_hold_the_whole_network(written, programs, name):
    """What `repnets bench` shows as the size of a file: no part that its runtime reads is left out."""
    file = written(name, "fp32")[0][0]
    parts = [file, *LOADED[name].data_files(file)]
    size_bytes = sum(one.stat().st_size for part in parts for one in (part, *part.rglob("*")) if one.is_file())
    assert size_bytes > sum(4 * weight.numel() for weight in programs["fused"].parameters())


@pytest.mark.parametrize(("name", "precision"), [case for case in CASES if case[1] in FLOATS])
def test_the_exact_session_computes_in_float32(written, programs, image, name, precision):
    if LOADED[name].runtime.open_exact_session is None:
        assert LOADED[name].float_beside_int8 == "fp32"
        return
    file = written(name, precision)[0][0]
    rounded = copy.deepcopy(programs["fused"].module())
    if precision == "fp16":
        rounded = rounded.half().float()
    got = client.predict(name, file, image.numpy(), session="exact")
    assert compare.compare(got, rounded(image).detach().numpy()).relative_error <= compare.EXACT


@pytest.mark.parametrize("name", WRITERS)
def test_layers_bear_the_names_of_the_program(written, programs, image, name):
    if LOADED[name].runtime.outputs_by_layer is None:
        return
    got = client.outputs_by_layer(name, written(name, "fp32")[0][0], image.numpy(), exact=True)
    want = graphs.outputs_of(programs["fused"].module(), image.numpy())
    common = [layer for layer in got if layer in want]
    assert len(common) >= len(graphs.layers(programs["fused"].module())) // 2, (list(got), list(want))
    assert compare.first_departure(got, want, compare.TOLERANCE["fp32"]) is None


@pytest.mark.parametrize("name", WRITERS)
def test_the_target_s_own_runtime_runs_and_is_timed_where_it_is_here(written, image, name):
    backend = LOADED[name]
    if backend.unavailable():
        return
    file = written(name, "fp32")[0][0]
    assert client.predict(name, file, image.numpy(), session="own").shape == (1, 5)
    layers = client.profile(client.Job(name, file), image.numpy(), 1, 10)
    assert (layers is None) == (backend.runtime.profile is None)
    if layers:
        assert all(set(layer) == {"name", "kind", "ms"} and layer["ms"] >= 0 for layer in layers)
        assert sum(layer["kind"] in ("convolution", "depthwise") for layer in layers) >= 3


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_refused_in_words(written, tmp_path, name):
    file = tmp_path / LOADED[name].file_name("fused")
    for content in (b"", b"nothing of the kind"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(file.name)):
            LOADED[name].census(file)
        with pytest.raises(InputError, match=re.escape(file.name)):
            signatures.read(file)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_looked_for_and_whether_a_machine_can_run_the_files(name):
    for one in LOADED[name].requirements:
        assert one.name and one.why and one.kinds
    found = requirements.find(LOADED[name].requirements)
    assert all(one.is_met or one.remedy for one in found)
    can = LOADED[name].can_run_on(facts.inventory(facts.here(), "/tmp", "python3"), requirements.ranges())
    assert can.how and can.yes == (not can.missing)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_shipped_is_there(name):
    parts = LOADED[name].bundle
    assert isinstance(parts, BundleParts) and "predict.py" in parts.files
    for text in (*parts.files.values(), *parts.files_for_pixels.values(), parts.usage):
        assert (parts.folder / text).is_file(), text
    assert bool(parts.machine_suffix) == bool(parts.hold_machine_file)
    if parts.app:
        assert set(parts.app.places) <= {"@FILE@", "labels.txt", *parts.files}
        assert parts.app.next_steps.format(folder="f", file="g", stem="h")


@pytest.mark.parametrize("name", [name for name in NAMES if LOADED[name].served])
def test_what_a_device_is_brought_is_little(name):
    served = LOADED[name].served
    brought = remote.closure(server.__name__, served.module)
    assert served.module in brought and len(brought) <= 16, brought
    assert not [module for module in brought if module.startswith(("pipeline.config", "pipeline.models"))]
