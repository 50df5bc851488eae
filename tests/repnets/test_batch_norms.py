"""What is said of batch norms that are out of the ordinary, and statistics estimated anew."""

import copy

import pytest
import torch
from torch import nn

import repnets
from repnets import RepnetsError


@pytest.fixture
def toy(randomise) -> nn.Module:
    torch.manual_seed(0)
    return randomise(repnets.create_model("toy", num_classes=10))


def kinds(model: nn.Module) -> dict[str, str]:
    return {finding.layer: finding.kind for finding in repnets.bn_health(model)}


def test_a_healthy_network_has_no_findings(toy):
    assert repnets.bn_health(toy) == []
    assert repnets.bn_health(toy.double()) == []
    assert repnets.bn_health(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))) == []


def test_a_network_that_was_never_trained_is_untouched_in_every_layer():
    model = repnets.create_model("toy", num_classes=10)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(names) == 7
    findings = repnets.bn_health(model)
    assert [finding.layer for finding in findings] == names
    assert {finding.kind for finding in findings} == {"untouched"}
    assert findings[0].message == (
        "The batch norm 'stage1.dense.bn' has the statistics that it was made with, mean 0 and variance 1: it never "
        "saw data in training mode, or they were left out of the checkpoint. Load a whole checkpoint, or estimate the "
        "statistics anew from training images (`recalibrate_bn` in the pipeline's config)."
    )
    model(torch.randn(4, 3, 8, 8))
    assert repnets.bn_health(model) == []


def test_a_variance_below_eps_is_tiny_where_the_gain_blows_up(toy):
    norm = toy.stage2.dense.bn
    with torch.no_grad():
        norm.running_var[[3, 5]] = torch.tensor([1e-9, 1e-12])
        norm.weight[[3, 5]] = torch.tensor([1.0, 2.0])
    (finding,) = repnets.bn_health(toy)
    assert (finding.layer, finding.kind, finding.value) == ("stage2.dense.bn", "tiny", pytest.approx(1e-12))
    assert "variances below its eps of 1e-05 in 2 of 128 channels, down to 1.0e-12" in finding.message
    assert "multiplied by up to 632" in finding.message  # 2 / sqrt(1e-5)
    assert "`recalibrate_bn`" in finding.message
    assert "dead" in finding.message


def test_a_dead_channel_that_its_weight_silences_is_no_finding(toy):
    with torch.no_grad():
        toy.stage2.dense.bn.running_var[3] = 1e-12
        toy.stage2.dense.bn.weight[3] = 1e-3  # a gain of 0.3
    assert repnets.bn_health(toy) == []


def test_a_variance_beyond_float16_is_huge(toy):
    toy.stage3.identity.running_var[7] = 1e8  # 6e4 is six standard deviations
    assert repnets.bn_health(toy) == []
    toy.stage3.identity.running_var[7] = 1e9
    (finding,) = repnets.bn_health(toy)
    assert (finding.layer, finding.kind, finding.value) == ("stage3.identity", "huge", 1e9)
    assert "variances up to 1.0e+09 in 1 of 128 channels, whose values leave the range of float16" in finding.message
    assert "Compare mean and std with those of the training, then estimate the statistics anew" in finding.message


def test_one_layer_can_be_both(toy):
    toy.stage1.dense.bn.running_var[:2] = torch.tensor([1e9, 0.0])
    assert [finding.kind for finding in repnets.bn_health(toy)] == ["tiny", "huge"]


def test_batch_norms_of_every_kind_are_looked_at():
    class Own(nn.BatchNorm2d):
        pass

    model = nn.ModuleDict(
        dict(one=nn.BatchNorm1d(3), two=nn.BatchNorm3d(3, affine=False), own=Own(3), sync=nn.SyncBatchNorm(3))
    )
    assert kinds(model) == dict.fromkeys(("one", "two", "own", "sync"), "untouched")
    assert repnets.bn_health(nn.BatchNorm2d(3))[0].message.startswith("The batch norm has the statistics")
    model.two.running_var[0] = 0
    assert kinds(model)["two"] == "tiny"


def test_a_finding_cannot_be_changed():
    finding = repnets.bn_health(nn.BatchNorm2d(3))[0]
    assert isinstance(finding, repnets.Finding)
    with pytest.raises(AttributeError):
        finding.kind = "huge"


def test_statistics_are_those_of_the_images_and_of_no_others():
    """One layer by hand: the plain mean over equal batches of means and of unbiased variances."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    model[0].running_mean.fill_(7)
    batches = [torch.randn(8, 3, 5, 5) * scale for scale in (1, 2, 3)]
    fresh = repnets.recalibrated(model, batches)
    channels = [batch.transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(fresh[0].running_mean, torch.stack([one.mean(1) for one in channels]).mean(0))
    torch.testing.assert_close(fresh[0].running_var, torch.stack([one.var(1) for one in channels]).mean(0))
    assert fresh[0].num_batches_tracked == 3
    assert fresh[0].momentum == 0.1
    assert not any(module.training for module in fresh.modules())


def test_the_model_given_and_every_weight_stay_as_they_are(toy):
    toy.train()
    before = copy.deepcopy(toy.state_dict())
    fresh = repnets.recalibrated(toy, [torch.randn(16, 3, 16, 16)])
    assert toy.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.state_dict().items())
    changed = {name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "running" in name or "num_batches" in name}


def test_spoiled_statistics_come_back(toy, relative_error):
    """What a network does on the very images that its statistics were taken from does not depend on the old ones."""
    images = torch.randn(64, 3, 16, 16)
    wanted = repnets.recalibrated(toy, [images])(images)
    spoiled = copy.deepcopy(toy)
    for name, buffer in spoiled.named_buffers():
        if "running" in name:
            buffer.mul_(100)
    assert relative_error(spoiled(images), wanted) > 0.1
    assert relative_error(repnets.recalibrated(spoiled, [images])(images), wanted) < 1e-5


def test_no_images_are_an_error(toy):
    with pytest.raises(RepnetsError, match=r"No image was given to estimate .* Give training images"):
        repnets.recalibrated(toy, [])


def test_a_model_without_batch_norms_is_an_error():
    for model in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)):
        with pytest.raises(RepnetsError, match=r"no batch norm with running statistics.*Leave it as it is"):
            repnets.recalibrated(model, [torch.zeros(2, 3, 4, 4)])


def test_statistics_that_are_not_finite_are_an_error(toy):
    with torch.no_grad():
        toy.stage1.dense.bn.weight.fill_(float("inf"))
    with pytest.raises(RepnetsError, match=r"statistics of the batch norm 'stage2.dense.bn' came out NaN or infinite"):
        repnets.recalibrated(toy, [torch.randn(4, 3, 8, 8)])
