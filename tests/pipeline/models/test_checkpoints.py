"""Checkpoints written, read, and refused."""

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import repnets
from pipeline.artifacts import documents
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.artifacts.manifest import Preprocessing
from pipeline.errors import InputError
from pipeline.models import checkpoints, external_checkpoints

PROJECT = Path(__file__).resolve().parents[3]
HEADER = CheckpointHeader(
    arch="toy",
    num_classes=10,
    preprocessing=Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), tuple("0123456789")),
    data_digest="0" * 64,
    epoch=3,
    weights="raw",
    seed=0,
    metrics={"val_accuracy": 0.5},
)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A toy network's weights, away from their defaults."""
    torch.manual_seed(0)
    model = repnets.create_model("toy", num_classes=10)
    model.train()(torch.randn(4, 3, 16, 16))
    return dict(model.state_dict())


def test_what_is_written_is_read(tmp_path, state):
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write(path, state, HEADER)
    tensors, header = checkpoints.read(path)
    assert header == HEADER == checkpoints.read_header(path)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_memory_order_and_process_do_not_change_the_bytes(tmp_path, state):
    checkpoints.write(tmp_path / "first.safetensors", state, HEADER)
    turned = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in reversed(state.items())
    }
    checkpoints.write(tmp_path / "second.safetensors", turned, HEADER)
    script = (
        "import sys; from pathlib import Path; from pipeline.models import checkpoints\n"
        "checkpoints.write(Path(sys.argv[2]), *checkpoints.read(Path(sys.argv[1])))"
    )
    words = [str(tmp_path / "first.safetensors"), str(tmp_path / "third.safetensors")]
    subprocess.run([sys.executable, "-c", script, *words], cwd=PROJECT, check=True)
    first = (tmp_path / "first.safetensors").read_bytes()
    assert first == (tmp_path / "second.safetensors").read_bytes()
    assert first == (tmp_path / "third.safetensors").read_bytes()


def test_a_network_comes_back_ready_to_use(tmp_path, state):
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write(path, state, HEADER)
    model, header = checkpoints.load_model(path)
    assert header.arch == "toy"
    assert not any(module.training for module in model.modules())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    reference = repnets.create_model("toy", num_classes=10)
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), reference.eval()(images))


def test_a_layer_under_two_names_is_written_twice(tmp_path):
    layer = torch.nn.Conv2d(3, 3, 1)
    model = torch.nn.ModuleDict({"one": layer, "two": layer})
    checkpoints.write(tmp_path / "checkpoint.safetensors", model.state_dict(), HEADER)
    state, _ = checkpoints.read(tmp_path / "checkpoint.safetensors")
    assert state.keys() == {"one.weight", "one.bias", "two.weight", "two.bias"}
    assert torch.equal(state["one.weight"], state["two.weight"])


def test_the_builder_is_known_without_torch(tmp_path, state):
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write(path, state, HEADER)
    script = (
        "import sys; from pathlib import Path; from pipeline.models import checkpoints\n"
        "print(*checkpoints.code_modules(Path(sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["repnets.networks.toy", "False"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty, so a copy or a download of it failed"),
        (b"\x01\x02", "is not a whole safetensors file"),
        (b"\xff" * 64, "is not a whole safetensors file: it ends before its table of contents does"),
        (struct.pack("<Q", 4) + b"nope", "is not a whole safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "checkpoint.safetensors"
    if content is not None:
        path.write_bytes(content)
    for reader in (
        checkpoints.read,
        external_checkpoints.read,
        checkpoints.load_model,
        checkpoints.code_modules,
    ):
        with pytest.raises(InputError, match=message):
            reader(path)


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, state, kept):
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write(path, state, HEADER)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=rf"has {int(kept * len(whole))} bytes and should have {len(whole)}"):
        checkpoints.load_model(path)


def test_a_foreign_file_is_no_checkpoint_of_ours(tmp_path, state):
    save_file(state, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match=r"has no header of this pipeline.*the stage `adopt`"):
        checkpoints.load_model(tmp_path / "foreign.safetensors")


def without(state: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in state.items() if name not in names}


def changed(state: dict, name: str, value: float) -> dict:
    tensor = state[name].clone()
    tensor.view(-1)[1] = value
    return {**state, name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: without(state, "stage2.dense.conv.weight"),
            "does not hold the weights of `toy`: `stage2.dense.conv.weight` is missing",
        ),
        (lambda state: {**state, "aux.weight": torch.zeros(3)}, "`aux.weight` is too many"),
        (
            lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
            r": `stage1.\*`, `stage2.\*`, `stage3.\*`, `head.\*` are missing; `backbone.\*` are too many",
        ),
        (
            lambda state: {**state, "stage1.dense.conv.weight": torch.zeros(64, 3, 5, 5)},
            r"`stage1.dense.conv.weight` has the shape \(64, 3, 5, 5\), but in `toy` it is \(64, 3, 3, 3\)",
        ),
        (
            lambda state: {
                **state,
                "head.linear.weight": torch.zeros(1000, 128),
                "head.linear.bias": torch.zeros(1000),
            },
            "tells 1000 classes apart .*but the data set has 10",
        ),
        (
            lambda state: changed(state, "stage3.identity.bias", float("nan")),
            "`stage3.identity.bias` holds 1 values that are NaN or infinite",
        ),
        (
            lambda state: changed(state, "stage1.dense.conv.weight", float("inf")),
            "`stage1.dense.conv.weight` holds 1 values that are NaN or infinite",
        ),
        (
            lambda state: changed(state, "stage3.identity.running_var", -0.5),
            r"`stage3.identity.running_var` holds a negative variance \(-0.5\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, state, change, message):
    checkpoints.write(tmp_path / "checkpoint.safetensors", change(state), HEADER)
    with pytest.raises(InputError, match=message) as error:
        checkpoints.load_model(tmp_path / "checkpoint.safetensors")
    assert str(tmp_path / "checkpoint.safetensors") in str(error.value)


def test_counters_alone_may_be_missing_and_half_precision_is_widened(state):
    old = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    model = repnets.create_model("toy", num_classes=10)
    checkpoints.load_strict(model, old, "toy", "mine.pth")
    got = model.state_dict()
    assert {tensor.dtype for tensor in got.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(got[name], tensor.float()) for name, tensor in old.items())


def test_a_header_with_a_network_that_is_gone(tmp_path, state):
    checkpoints.write(tmp_path / "checkpoint.safetensors", state, replace(HEADER, arch="gone"))
    with pytest.raises(InputError, match=r"there is no network `gone`; known: toy, "):
        checkpoints.load_model(tmp_path / "checkpoint.safetensors")


def test_nan_in_a_header_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.write(tmp_path / "checkpoint.safetensors", state, replace(HEADER, metrics={"loss": float("nan")}))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", r"the header in .* is no header of a checkpoint of this pipeline, .*Train the network again; or save"),
        ('{"arch": "toy"}', r"num_classes: field required"),
        ('{"schema": 2}', r"is a header of a checkpoint of schema 2, and this version of repnets reads 1: .*Update"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(tmp_path, state, header, message):
    save_file(state, tmp_path / "checkpoint.safetensors", metadata={"repnets": header})
    with pytest.raises(InputError, match=message):
        checkpoints.load_model(tmp_path / "checkpoint.safetensors")


def test_a_header_from_before_the_schema_is_of_the_first(tmp_path, state):
    old = documents.plain(HEADER)
    assert old.pop("schema") == 1
    save_file(state, tmp_path / "checkpoint.safetensors", metadata={"repnets": json.dumps(old)})
    assert checkpoints.read_header(tmp_path / "checkpoint.safetensors") == HEADER
