"""What several processes on GPUs do to a network's batch norms."""

import torch
from torch import nn

from pipeline.models import distributed, networks


class Own(nn.BatchNorm2d):
    """A batch norm that does more than torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_torchs_batch_norms_are_synchronised_and_keep_what_they_hold():
    shared = nn.BatchNorm2d(4)
    shared.running_mean.fill_(3)
    model = nn.ModuleDict({"one": shared, "two": shared, "flat": nn.BatchNorm1d(4), "inner": nn.Sequential(shared)})
    before = model.state_dict()
    made = distributed.synchronised(model)
    assert {name for name, module in made.named_modules() if isinstance(module, nn.SyncBatchNorm)} == {"one", "flat"}
    assert made["one"] is made["two"] is made["inner"][0]
    assert made.state_dict().keys() == before.keys()
    assert made["one"].running_mean.tolist() == [3] * 4
    assert isinstance(distributed.synchronised(nn.BatchNorm2d(4)), nn.SyncBatchNorm)


def test_a_batch_norm_of_a_class_of_its_own_stays_what_it_is():
    model = distributed.synchronised(nn.Sequential(Own(4), nn.BatchNorm2d(4)))
    assert [type(module) for module in model] == [Own, nn.SyncBatchNorm]


def test_a_network_of_timms_computes_the_same_after_it():
    """timm's batch norms hold the activation that follows; torch's own conversion drops it."""
    model = networks.build("timm:lcnet_035", 4).eval()
    assert any(
        type(module) not in (nn.BatchNorm2d, nn.Identity) for module in model.modules() if hasattr(module, "eps")
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = model(images)
        assert torch.equal(distributed.synchronised(model)(images), wanted)
        assert not torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(model)(images), wanted)
