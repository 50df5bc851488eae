"""The layouts of checkpoints: recognised, converted both ways, and refused by name. timm has its say next door."""

import subprocess
import sys

import pytest
import torch

import repnets
from repnets import RepnetsError
from repnets.checkpoints.layouts import Layout, block_names, convert, identify, namings, recognise, shapes

# number of tensors in the authors' files, training and deploy form
TENSORS = {
    **{f"repvgg_{name}": (351, 46) for name in ("a0", "a1", "a2")},
    **{
        f"repvgg_{name}": (453, 58) for name in ("b0", "b1", "b1g2", "b1g4", "b2", "b2g2", "b2g4", "b3", "b3g2", "b3g4")
    },
    "repvgg_d2se": (985, 290),
    "mobileone_s0": (1323, 88),
    **{f"mobileone_{name}": (562, 88) for name in ("s1", "s2", "s3")},
    "mobileone_s4": (610, 136),
}
EACH = [(naming, form) for naming in ("repnets", "official", "timm") for form in ("training", "deploy")]


def weights(arch: str, naming: str = "repnets", form: str = "training") -> dict[str, torch.Tensor]:
    """Every tensor of a network, without its values."""
    ours = {name: torch.empty(shape, device="meta") for name, shape in shapes(arch, form).items()}
    return convert(ours, arch, naming)


def without(state: dict, *names: str) -> dict:
    assert set(names) <= set(state)
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize("arch", TENSORS)
def test_there_are_as_many_tensors_as_in_the_authors_files(arch):
    assert (len(weights(arch, "official")), len(weights(arch, "official", "deploy"))) == TENSORS[arch]


def test_every_repvgg_and_mobileone_has_all_layouts():
    assert {arch for arch in repnets.list_models() if namings(arch) == ("repnets", "official", "timm")} == set(TENSORS)
    assert [namings(arch) for arch in ("toy", "qarepvgg_a0", "resnet18", "toy_detector")] == [
        *(("repnets",), ("repnets",), (), ())
    ]


@pytest.mark.parametrize(
    ("arch", "ours", "official", "timm"),
    [
        ("repvgg_a0", "stage0.dense.conv.weight", "stage0.rbr_dense.conv.weight", "stem.conv_kxk.conv.weight"),
        ("repvgg_a0", "stage0.pointwise.bn.bias", "stage0.rbr_1x1.bn.bias", "stem.conv_1x1.bn.bias"),
        ("repvgg_a0", "stage3.13.identity.weight", "stage3.13.rbr_identity.weight", "stages.2.13.identity.weight"),
        ("repvgg_a0", "head.linear.weight", "linear.weight", "head.fc.weight"),
        ("repvgg_d2se", "stage0.se.reduce.weight", "stage0.se.down.weight", "stem.attn.fc1.weight"),
        ("repvgg_d2se", "stage4.0.se.expand.bias", "stage4.0.se.up.bias", "stages.3.0.attn.fc2.bias"),
        (
            "mobileone_s0",
            "stage0.convs.0.bn.running_var",
            "stage0.rbr_conv.0.bn.running_var",
            "stem.conv_kxk.0.bn.running_var",
        ),
        (
            "mobileone_s0",
            "stage2.15.convs.3.conv.weight",
            "stage2.15.rbr_conv.3.conv.weight",
            "stages.1.15.conv_kxk.3.conv.weight",
        ),
        (
            "mobileone_s0",
            "stage1.0.scale.conv.weight",
            "stage1.0.rbr_scale.conv.weight",
            "stages.0.0.conv_scale.conv.weight",
        ),
        (
            "mobileone_s0",
            "stage1.2.skip.running_mean",
            "stage1.2.rbr_skip.running_mean",
            "stages.0.2.identity.running_mean",
        ),
        ("mobileone_s4", "stage3.19.se.expand.bias", "stage3.19.se.expand.bias", "stages.2.19.attn.fc2.bias"),
    ],
)
def test_names_of_the_training_form(arch, ours, official, timm):
    state = weights(arch)
    assert convert(state, arch, "official")[official] is state[ours]
    assert convert(state, arch, "timm")[timm] is state[ours]


@pytest.mark.parametrize(
    ("arch", "ours", "official", "timm"),
    [
        ("repvgg_b1g4", "stage0.weight", "stage0.rbr_reparam.weight", "stem.reparam_conv.weight"),
        ("repvgg_b1g4", "stage3.15.bias", "stage3.15.rbr_reparam.bias", "stages.2.15.reparam_conv.bias"),
        ("repvgg_d2se", "stage1.0.se.reduce.bias", "stage1.0.se.down.bias", "stages.0.0.attn.fc1.bias"),
        ("mobileone_s1", "stage0.bias", "stage0.reparam_conv.bias", "stem.reparam_conv.bias"),
        ("mobileone_s1", "stage4.1.weight", "stage4.1.reparam_conv.weight", "stages.3.1.reparam_conv.weight"),
        ("mobileone_s1", "head.linear.bias", "linear.bias", "head.fc.bias"),
    ],
)
def test_names_of_the_deploy_form(arch, ours, official, timm):
    state = weights(arch, form="deploy")
    assert convert(state, arch, "official")[official] is state[ours]
    assert convert(state, arch, "timm")[timm] is state[ours]


@pytest.mark.parametrize("form", ["training", "deploy"])
@pytest.mark.parametrize("arch", ["repvgg_a0", "repvgg_d2se", "mobileone_s0", "mobileone_s4"])
def test_the_way_there_and_back_loses_nothing(arch, form):
    ours = weights(arch, form=form)
    official = convert(ours, arch, "official")
    timm = convert(official, arch, "timm")
    for back in (convert(official, arch), convert(timm, arch), convert(convert(timm, arch, "official"), arch)):
        assert list(back) == list(ours)
        assert all(back[name] is ours[name] for name in ours)


@pytest.mark.parametrize(("naming", "form"), EACH)
@pytest.mark.parametrize("arch", ["repvgg_a0", "repvgg_d2se", "mobileone_s0", "mobileone_s4"])
def test_a_layout_is_recognised_by_its_keys(arch, naming, form):
    keys = list(weights(arch, naming, form))
    assert recognise(keys) == recognise(f"module.{key}" for key in keys) == Layout(naming, form)
    assert str(recognise(keys)) == f"{naming} {form}"


@pytest.mark.parametrize(("naming", "form"), EACH)
def test_a_network_is_identified_by_its_shapes(naming, form):
    assert [identify(weights(arch, naming, form)) for arch in TENSORS] == list(TENSORS)
    assert identify(without(weights("repvgg_a0", "official"), "linear.bias")) is None


def test_another_number_of_classes_is_the_same_network():
    state = {**weights("repvgg_a0", "official"), "linear.weight": torch.zeros(7, 1280), "linear.bias": torch.zeros(7)}
    assert identify(state) == "repvgg_a0"
    assert convert(state, "repvgg_a0")["head.linear.bias"].shape == (7,)


@pytest.mark.parametrize(
    ("arch", "layer"), [("toy", "stage3"), pytest.param("qarepvgg_a0", "stage4.0", marks=pytest.mark.slow)]
)
def test_the_weights_of_a_fused_network_are_of_the_deploy_form(randomise, arch, layer):
    fused = repnets.fuse(randomise(repnets.create_model(arch, num_classes=10)), torch.zeros(1, 3, 64, 64)).module
    got = convert(fused.state_dict(), arch)
    assert {name: tensor.shape for name, tensor in got.items()} == dict(shapes(arch, "deploy", 10))
    assert torch.equal(got[f"{layer}.weight"], fused.get_submodule(layer).weight)


def test_a_fused_convolution_is_named_by_its_block():
    """Its own path lies deeper where the block has one branch, or holds more than was folded."""
    names = {
        "stage0.weight": "stage0.weight",
        "stage1.1.convs.0.bias": "stage1.1.bias",
        "stage3.10.convs.0.conv.weight": "stage3.10.weight",
        "stage3.10.se.reduce.weight": "stage3.10.se.reduce.weight",
        "stage0.se.expand.bias": "stage0.se.expand.bias",
        "head.linear.bias": "head.linear.bias",
    }
    assert block_names(names) == names
    assert recognise(names) == Layout("repnets", "deploy")


def test_a_block_that_was_folded_in_part_is_refused():
    with pytest.raises(RepnetsError, match=r"`stage1.0.dense.conv.weight` and `stage1.0.pointwise.conv.weight` are of"):
        block_names(["stage1.0.dense.conv.weight", "stage1.0.pointwise.conv.weight"])


def test_counters_may_be_missing_or_too_many():
    whole = weights("repvgg_a0", "official")
    counters = [name for name in whole if name.endswith("num_batches_tracked")]
    got = convert({**without(whole, *counters), "stage9.num_batches_tracked": torch.tensor(0)}, "repvgg_a0")
    assert list(got) == [name for name in shapes("repvgg_a0") if not name.endswith("num_batches_tracked")]


@pytest.mark.parametrize(
    ("naming", "form", "name"),
    [
        ("repnets", "training", "stage1.0.pointwise.conv.weight"),
        ("official", "training", "stage4.0.rbr_dense.bn.running_var"),
        ("official", "deploy", "stage0.rbr_reparam.bias"),
        ("official", "deploy", "linear.weight"),
        ("timm", "training", "stages.2.13.identity.bias"),
        ("timm", "deploy", "head.fc.bias"),
    ],
)
def test_a_missing_and_a_surplus_tensor_are_named_as_the_file_names_them(naming, form, name):
    whole = weights("repvgg_a0", naming, form)
    with pytest.raises(RepnetsError) as caught:
        convert(without(whole, name), "repvgg_a0")
    assert str(caught.value) == (
        f"These {naming} {form} weights are not those of `repvgg_a0`: `{name}` is missing. They fit no other network "
        "that repnets has either: the file is incomplete, or of another network."
    )
    with pytest.raises(RepnetsError, match=r"`aux.weight`, `aux.bias` are too many"):
        convert({**whole, "aux.weight": torch.zeros(1), "aux.bias": torch.zeros(1)}, "repvgg_a0")


def test_the_weights_of_another_network_are_told_apart_and_named():
    with pytest.raises(RepnetsError, match=r"not those of `repvgg_a0`: .* They fit `repvgg_b1g4`: name that network"):
        convert(weights("repvgg_b1g4", "official"), "repvgg_a0")
    # as many tensors of the same names: the groups alone differ
    shapes_of_both = (
        r"`stage1.1.rbr_dense.conv.weight` has the shape \(128, 32, 3, 3\), but in `repvgg_b1` it is \(128, 128"
    )
    with pytest.raises(RepnetsError, match=shapes_of_both):
        convert(weights("repvgg_b1g4", "official"), "repvgg_b1")
    with pytest.raises(RepnetsError, match=r"`stage0.\*`, .* are missing; .* They fit `mobileone_s1`: name"):
        convert(weights("mobileone_s1", "official"), "repvgg_a0")


def test_a_gate_of_linear_layers_is_refused():
    whole = weights("repvgg_d2se", "official")
    flat = {**whole, "stage0.se.down.weight": torch.zeros(4, 64)}
    with pytest.raises(
        RepnetsError, match=r"`stage0.se.down.weight` has the shape \(4, 64\), but .* \(4, 64, 1, 1\)\."
    ):
        convert(flat, "repvgg_d2se")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("official", "training"), ("official", "deploy")),
        (("timm", "training"), ("timm", "deploy")),
        (("repnets", "training"), ("repnets", "deploy")),
        (("official", "training"), ("timm", "training")),
    ],
)
def test_mixed_layouts_are_refused_with_a_key_of_each(one, other):
    first, second = weights("repvgg_a0", *one), weights("repvgg_a0", *other)
    with pytest.raises(RepnetsError) as caught:
        convert({**first, **second}, "repvgg_a0")
    said = str(caught.value)
    assert said.startswith("The keys are of 2 layouts at once: ")
    assert f" is of {' '.join(one)}" in said and f" is of {' '.join(other)}" in said
    assert "save the network again, in one form" in said


def test_an_unknown_layout_is_refused():
    with pytest.raises(RepnetsError, match=r"None of the 2 keys is of a layout .*first of them is `layer1.0.weight`"):
        recognise(["layer1.0.weight", "fc.bias"])
    with pytest.raises(RepnetsError, match=r"None of the 0 keys is of a layout that is known here. Known are"):
        recognise([])


@pytest.mark.parametrize(("arch", "naming"), [("toy", "official"), ("toi", "timm"), ("repvgg_a0", "keras")])
def test_a_layout_that_a_network_has_not_is_refused(arch, naming):
    with pytest.raises(RepnetsError, match=rf"no network `{arch}` with a layout `{naming}`\. Networks with one: "):
        convert(weights("toy"), arch, naming)


def test_recognising_imports_no_torch():
    code = (
        "import sys; from repnets.checkpoints.layouts import recognise; "
        "print(recognise(['stem.reparam_conv.bias']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "timm deploy False"
