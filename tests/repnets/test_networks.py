import subprocess
import sys

import pytest
import torch

import repnets
from repnets.networks import MODELS

# parameters in training form and fused, of the official definitions at 1000 classes
PARAMETERS = {
    "repvgg_a0": (9108968, 8309384),
    "repvgg_a1": (14092264, 12789864),
    "repvgg_a2": (28210600, 25499944),
    "repvgg_b0": (15817960, 14339048),
    "repvgg_b1": (57415016, 51829480),
    "repvgg_b1g2": (45782376, 41360104),
    "repvgg_b1g4": (39966056, 36125416),
    "repvgg_b2": (89022376, 80315112),
    "repvgg_b2g2": (70846376, 63956712),
    "repvgg_b2g4": (61758376, 55777512),
    "repvgg_b3": (123085288, 110960872),
    "repvgg_b3g2": (96911848, 87404776),
    "repvgg_b3g4": (83825128, 75626728),
    "repvgg_d2se": (133334836, 120387572),
    "mobileone_s0": (5293272, 2078504),
    "mobileone_s1": (4825192, 4764840),
    "mobileone_s2": (7884648, 7808168),
    "mobileone_s3": (10170600, 10078312),
    "mobileone_s4": (14951248, 14838352),
}


def test_every_network_is_listed_once():
    assert repnets.list_models() == ["toy", *PARAMETERS]
    assert all(name == spec.name for name, spec in MODELS.items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_in_training_form_equal_the_official_count(name):
    with torch.device("meta"):
        model = repnets.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name][0]


@pytest.mark.parametrize("name", ["toy", "repvgg_b1g4", "repvgg_d2se", "mobileone_s0", "mobileone_s4"])
def test_the_smallest_image_reaches_every_stage(name):
    size = MODELS[name].min_image_size
    with torch.device("meta"):
        model = repnets.create_model(name, num_classes=7).eval()
        features = torch.nn.Sequential(*list(model)[:-1])(torch.empty(2, 3, size, size))
        assert features.shape[2:] == (1, 1)
        assert model(torch.empty(2, 3, size + 5, size)).shape == (2, 7)


# these two have every kind of branch; with the others the exporter alone takes minutes
@pytest.mark.slow
@pytest.mark.parametrize(("name", "mmac"), [("repvgg_a0", 1361), ("mobileone_s0", 275.1)])
def test_parameters_and_cost_of_the_fused_network_equal_the_official_ones(randomise, name, mmac):
    model = randomise(repnets.create_model(name))
    report = repnets.fuse(model, torch.zeros(1, 3, 224, 224)).report
    assert (report.before.parameters, report.after.parameters) == PARAMETERS[name]
    assert report.after.macs / 1e6 == pytest.approx(mmac, rel=1e-3)
    assert (report.after.batch_norms, report.after.additions, report.refusals) == (0, 0, ())
    assert max(region.error_float64 for region in report.regions) < 1e-14
    assert max(region.error_float32 for region in report.regions) < 1e-5


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(repnets.RepnetsError, match=r"no network 'repvgg-a0'. Did you mean 'repvgg_a0'\?.*list_models"):
        repnets.create_model("repvgg-a0")
    with pytest.raises(repnets.RepnetsError, match=r"no network 'zzz'. repnets.list_models"):
        repnets.create_model("zzz")


def test_a_classifier_without_classes_is_refused():
    with pytest.raises(repnets.RepnetsError, match="num_classes is 0"):
        repnets.create_model("toy", num_classes=0)


def test_listing_networks_imports_no_torch():
    code = "import sys, repnets, repnets.networks; repnets.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_face():
    for name in repnets.__all__:
        assert getattr(repnets, name).__name__ == name
    assert set(repnets.__all__) <= set(dir(repnets))
    with pytest.raises(AttributeError, match="no attribute 'unfuse'"):
        _ = repnets.unfuse
