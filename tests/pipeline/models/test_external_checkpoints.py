"""Files of others: unwrapped, brought into our layout, and refused; a pickle with code in it does not get to run."""

import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import repnets
from pipeline.artifacts import documents
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.errors import InputError
from pipeline.models import checkpoints, external_checkpoints
from repnets.checkpoints.layouts import convert, identify, shapes
from tests.fixtures.documents import completed

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A toy network's weights, away from their defaults."""
    torch.manual_seed(0)
    model = repnets.create_model("toy", num_classes=10)
    model.train()(torch.randn(4, 3, 16, 16))
    return dict(model.state_dict())


class Code:
    """A pickle of this writes a file when it is read by a reader that runs code."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return (Path.write_text, (self.witness, "the code ran"))


@pytest.mark.parametrize(
    ("wrap", "weights"),
    [
        (lambda state: state, "raw"),
        (lambda state: {"state_dict": state, "epoch": 3}, "raw"),
        (lambda state: {"model": state}, "raw"),
        (lambda state: {"model": {"state_dict": state}}, "raw"),
        (lambda state: {"module": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, "raw"),
        (lambda state: {"ema": {"decay": 0.99}, "model": {"module": {"state_dict": state}}}, "raw"),
        (lambda state: {"state_dict": state, "ema": {"module": state}}, "ema"),
        (lambda state: {"state_dict": {}, "state_dict_ema": state}, "ema"),
        (lambda state: {"model": {}, "ema": {"module": None, "state_dict": state}}, "ema"),
        (lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **state}}, "ema"),
    ],
)
def test_wrappers_are_taken_off(tmp_path, state, wrap, weights):
    torch.save(wrap(state), tmp_path / "mine.pth")
    found, kind, _ = external_checkpoints.read(tmp_path / "mine.pth")
    assert kind == weights
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_dict_in_itself_ends(tmp_path, state):
    turning = {"epoch": 3}
    turning |= {name: turning for name in ("model", "ema", "net", "module", "state_dict")}
    torch.save(turning, tmp_path / "mine.pth")
    with pytest.raises(InputError, match="holds no weights by name"):
        external_checkpoints.read(tmp_path / "mine.pth")
    torch.save({**turning, "params": state}, tmp_path / "mine.pth")
    assert external_checkpoints.read(tmp_path / "mine.pth")[0].keys() == state.keys()


def test_a_checkpoint_of_lightning(tmp_path, state):
    """The parts and types of what lightning 2.6 writes for a module with `self.model`."""
    content = {
        **{
            "epoch": 1,
            "global_step": 2,
            "pytorch-lightning_version": "2.6.6",
            "loops": {"fit_loop": {"state_dict": {}}},
        },
        "state_dict": OrderedDict((f"model.{name}", value) for name, value in state.items()),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"kth_value": torch.tensor(1.0), "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}],
        **{"lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "arch": "toy"}},
    }
    torch.save(content, tmp_path / "last.ckpt")
    found, _, _ = external_checkpoints.read(tmp_path / "last.ckpt")
    ours, form = external_checkpoints.as_ours(found, "toy", "last.ckpt")
    assert (form, external_checkpoints.form_of(tmp_path / "last.ckpt", "toy")) == ("training", "training")
    assert all(torch.equal(ours[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, state, zipped):
    witness = tmp_path / "witness"
    torch.save(
        {"state_dict": state, "hook": Code(witness)},
        tmp_path / "mine.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(InputError, match="reading it would run code that is in it; nothing of it was run") as error:
        external_checkpoints.read(tmp_path / "mine.pth")
    assert "Save the weights alone" in str(error.value)
    assert not witness.exists()
    torch.load(tmp_path / "mine.pth", weights_only=False)
    assert witness.read_text() == "the code ran"  # so there was something to refuse


def test_a_bare_pickle_with_code_does_not_run(tmp_path):
    (tmp_path / "mine.pt").write_bytes(pickle.dumps(Code(tmp_path / "witness"), protocol=2))
    with pytest.raises(InputError, match=r"mine.pt"):
        external_checkpoints.read(tmp_path / "mine.pt")
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_a_whole_network_is_refused(tmp_path, wrap, zipped):
    torch.save(wrap(repnets.create_model("toy")), tmp_path / "mine.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"holds a whole network.*Save its weights alone.*model\.state_dict\(\)"):
        external_checkpoints.read(tmp_path / "mine.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty, so a copy or a download of it failed"),
        (b"plain text", "is no checkpoint, or was cut short"),
        (b"text", "is no checkpoint, or was cut short"),
        (b"PK\x03\x04 and no more", "is no checkpoint, or was cut short"),
    ],
)
def test_what_is_no_pickle_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        external_checkpoints.read(tmp_path / "mine.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_truncated_pickle_is_refused(tmp_path, state, kept, zipped):
    torch.save(state, tmp_path / "mine.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "mine.pth").read_bytes()
    (tmp_path / "mine.pth").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match="is no checkpoint, or was cut short"):
        external_checkpoints.read(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list and no weights by name"),
        (torch.zeros(3), "holds a Tensor and no weights by name"),
        ({}, "it is an empty dict"),
        ({"epoch": 3, "note": "hello"}, "`epoch`, `note` are no tensors"),
    ],
)
def test_a_pickle_without_weights_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=message):
        external_checkpoints.read(tmp_path / "mine.pth")


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"is neither .safetensors nor .pth, .pt"):
        external_checkpoints.read(tmp_path / "mine.h5")


def test_a_safetensors_file_is_read_with_its_header_if_it_is_ours(tmp_path, state):
    save_file(state, tmp_path / "bare.safetensors")
    found, weights, header = external_checkpoints.read(tmp_path / "bare.safetensors")
    assert (found.keys(), weights, header) == (state.keys(), "raw", None)
    own = documents.of(CheckpointHeader, completed(CheckpointHeader, {"arch": "toy", "weights": "ema"}))
    checkpoints.write(tmp_path / "ours.safetensors", state, own)
    _, weights, header = external_checkpoints.read(tmp_path / "ours.safetensors")
    assert (weights, header) == ("ema", own)


# Layouts


def weights(arch: str, naming: str, form: str) -> dict[str, torch.Tensor]:
    """Tensors of a network in some layout, as small as can be in memory: all values are one and the same."""
    ours = {name: torch.zeros(()).expand(shape) for name, shape in shapes(arch, form).items()}
    return convert(ours, arch, naming)


LAYOUTS = [(naming, form) for naming in ("repnets", "official", "timm") for form in ("training", "deploy")]


@pytest.mark.parametrize(("naming", "form"), LAYOUTS)
def test_every_layout_becomes_ours(naming, form):
    got, found = external_checkpoints.as_ours(weights("mobileone_s1", naming, form), "mobileone_s1", "mine.pth")
    assert (list(got), found) == (list(shapes("mobileone_s1", form)), form)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.", "a.0.b."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("naming", "form"), LAYOUTS)
def test_any_prefix_of_all_keys_is_taken_off(naming, form, prefix):
    plain = weights("repvgg_a0", naming, form)
    state = {f"{prefix}{name}": tensor for name, tensor in plain.items()}
    got, found = external_checkpoints.as_ours(state, "repvgg_a0", "mine.pth")
    assert (list(got), found) == (list(shapes("repvgg_a0", form)), form)
    assert identify(state) == "repvgg_a0"
    mixed = {**state, "aux": torch.zeros(1)}
    with pytest.raises(InputError, match="`aux`"):
        external_checkpoints.as_ours(mixed, "repvgg_a0", "mine.pth")


def test_a_prefix_is_not_in_the_way_of_a_message():
    state = {f"model.{name}": tensor for name, tensor in weights("repvgg_a0", "official", "training").items()}
    del state["model.linear.bias"]
    with pytest.raises(InputError, match=r"of `repvgg_a0`: `linear.bias` is missing\. They fit no other"):
        external_checkpoints.as_ours(state, "repvgg_a0", "mine.pth")
    with pytest.raises(InputError, match="They fit `repvgg_a0`: name that network"):
        state["model.linear.bias"] = torch.zeros(1000)
        external_checkpoints.as_ours(state, "repvgg_a1", "mine.pth")


def test_a_network_without_layouts_is_taken_as_it_is():
    state = {"stage1.rbr_reparam.weight": torch.zeros(1)}
    assert external_checkpoints.as_ours(state, "timm:resnet18", "mine.pth") == (state, "training")


def test_what_does_not_fit_names_the_file():
    state = {**weights("mobileone_s1", "official", "deploy"), "aux": torch.zeros(1)}
    with pytest.raises(InputError, match=r"^mine.pth: These official deploy weights .*: `aux` is too many"):
        external_checkpoints.as_ours(state, "mobileone_s1", "mine.pth")


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "parallel": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    "average": lambda state: {"state_dict": state, "state_dict_ema": state},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("naming", "form"), LAYOUTS)
def test_the_form_is_seen_from_the_keys_of_a_pickle(tmp_path, naming, form, wrapper, zipped):
    path = tmp_path / "mine.pth"
    state = WRAPPERS[wrapper](weights("repvgg_a0", naming, form))
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert external_checkpoints.form_of(path, "repvgg_a0") == form


@pytest.mark.parametrize(("naming", "form"), LAYOUTS)
def test_the_form_is_seen_from_the_table_of_a_safetensors_file(tmp_path, naming, form):
    state = {name: torch.zeros(()) for name in weights("repvgg_a0", naming, form)}
    save_file(state, tmp_path / "mine.safetensors")
    assert external_checkpoints.form_of(tmp_path / "mine.safetensors", "repvgg_a0") == form


def test_the_form_is_seen_without_torch(tmp_path):
    torch.save(weights("repvgg_a0", "official", "deploy"), tmp_path / "mine.pth")
    script = (
        "import sys; from pathlib import Path; from pipeline.models import external_checkpoints\n"
        "print(external_checkpoints.form_of(Path(sys.argv[1]), 'repvgg_a0'), 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "mine.pth")]
    done = subprocess.run(words, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["deploy", "False"]


@pytest.mark.parametrize("zipped", [True, False])
def test_looking_at_the_keys_runs_no_code(tmp_path, zipped):
    state = {**weights("repvgg_a0", "official", "deploy"), "hook": Code(tmp_path / "witness")}
    torch.save(state, tmp_path / "mine.pth", _use_new_zipfile_serialization=zipped)
    assert external_checkpoints.form_of(tmp_path / "mine.pth", "repvgg_a0") == "deploy"
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"plain text", b"PK\x03\x04 and no more", b"\x80\x02\x8d" + b"\xff" * 7 + b"\x0f", b"\x80\x02}."],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5"])
def test_what_cannot_be_read_is_left_to_the_stage_that_reads_it(tmp_path, content, suffix):
    path = tmp_path / f"mine{suffix}"
    if content is not None:
        path.write_bytes(content)
    assert external_checkpoints.form_of(path, "repvgg_a0") == "training"
    with pytest.raises(InputError):
        external_checkpoints.read(path)


def test_a_file_of_two_layouts_is_left_to_the_stage_that_reads_it(tmp_path):
    both = {**weights("repvgg_a0", "official", "deploy"), **weights("repvgg_a0", "official", "training")}
    torch.save(both, tmp_path / "mine.pth")
    assert external_checkpoints.form_of(tmp_path / "mine.pth", "repvgg_a0") == "training"
    with pytest.raises(InputError, match=r"mine.pth: The keys are of 2 layouts at once"):
        external_checkpoints.as_ours(both, "repvgg_a0", "mine.pth")


def test_a_network_without_layouts_has_the_training_form(tmp_path):
    torch.save(weights("repvgg_a0", "timm", "deploy"), tmp_path / "mine.pth")
    assert external_checkpoints.form_of(tmp_path / "mine.pth", "timm:repvgg_a0") == "training"
