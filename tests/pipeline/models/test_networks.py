"""From an `arch` to a network: this project's, timm's and the user's own, and what each mistake is answered with."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import repnets
from pipeline.artifacts import digests, source_files
from pipeline.artifacts.manifest import Preprocessing
from pipeline.errors import InputError
from pipeline.models import networks

PROJECT = Path(__file__).resolve().parents[3]
OWN = """
    from torch import nn

    def build(num_classes=10, width=8):
        layers = nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
        return nn.Sequential(*layers)

    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.linear = nn.Linear(3, num_classes)

        def forward(self, x):
            return self.linear(x.mean((2, 3)))
"""


GRAYS = """
    from torch import nn

    def build(num_classes, in_channels=3):
        layers = nn.Conv2d(in_channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        return nn.Sequential(*layers)

    def fixed(num_classes):
        return build(num_classes, 1)
"""


def of(classes: int, side: int, color_order: str = "RGB") -> Preprocessing:
    """Of images for a network of so many classes."""
    levels = (0.5,) * (1 if color_order == "gray" else 3)
    return Preprocessing(side, levels, levels, tuple(map(str, range(classes))), color_order=color_order)


def digest_of(arch: str) -> str:
    return digests.code_digest(*networks.code_modules(arch))


def test_a_network_of_repnets():
    model = networks.build("toy", 7)
    assert model.training
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert networks.code_modules("toy") == ("repnets.networks.toy",)
    assert (networks.min_image_size("toy"), networks.min_image_size("repvgg_a0")) == (4, 32)


@pytest.mark.parametrize("arch", ["toy", "mobileone_s0", "toy+dbb", "timm:lcnet_035", "grays:build", "grays:fixed"])
def test_a_network_of_gray_images(own_modules, arch):
    own_modules({"grays": GRAYS})
    networks.require_runs(networks.build(arch, 5, channels=1), arch, of(5, 32, "gray"))
    if arch != "grays:fixed":
        with pytest.raises(InputError, match=r"one channel, gray.*set `color_order` under its name"):
            networks.require_runs(networks.build(arch, 5), arch, of(5, 32, "gray"))


@pytest.mark.parametrize("base", ["toy", "mynet:build"])
def test_an_expanded_network(own_modules, base):
    own_modules({"mynet": OWN})
    arch = f"{base}+repvgg"
    networks.check(arch)
    model = networks.build(arch, 5)
    networks.require_runs(model, arch, of(5, 16))
    assert any(".beside." in name for name, _ in model.named_parameters())
    assert networks.min_image_size(arch) == networks.min_image_size(base)
    assert set(networks.code_modules(arch)) == {*networks.code_modules(base), "repnets.expansion.expand"}


@pytest.mark.parametrize("factory", ["build", "Net"])
def test_a_network_of_the_users_own(own_modules, factory):
    own_modules({"mynet": OWN})
    networks.check(f"mynet:{factory}")
    model = networks.build(f"mynet:{factory}", 5)
    assert model.training
    networks.require_runs(model, f"mynet:{factory}", of(5, 16))
    assert networks.min_image_size(f"mynet:{factory}") is None


def test_a_module_deep_in_a_package_and_one_that_is_installed(own_modules):
    own_modules({"mynets/deep": OWN, "mynets/__init__": ""})
    assert networks.build("mynets.deep:build", 5)(torch.zeros(1, 3, 9, 9)).shape == (1, 5)
    assert networks.build("torchvision.models:squeezenet1_1", 5)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_module_in_folders_that_are_no_packages(own_modules):
    own_modules({"spaces/inner/deep": OWN})
    assert networks.build("spaces.inner.deep:build", 5)(torch.zeros(1, 3, 9, 9)).shape == (1, 5)
    first = digest_of("spaces.inner.deep:build")
    own_modules({"spaces/inner/deep": OWN.replace("width=8", "width=16")})
    assert digest_of("spaces.inner.deep:build") != first


def test_a_module_on_pythons_path(own_modules, tmp_path, monkeypatch):
    own_modules({"elsewhere/theirs": OWN})
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert isinstance(networks.build("theirs:Net", 2), nn.Module)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("toi", "there is no network `toi`; did you mean `toy`?"),
        ("zzz", "there is no network `zzz`; known: toy, repvgg_a0"),
        ("mynet:bild", "mynet.py has no `bild`; did you mean `build`?"),
        ("mynet:frob", "mynet.py has no `frob`; known: build, Net."),
        ("mynets:build", "mynets/__init__.py has no `build`; did you mean `mynets.small:build`?"),
        ("torchvision:resnet18", "has no `resnet18`; did you mean `torchvision.models.resnet:resnet18`?"),
        ("empty:build", "empty.py has no `build`, and no function at all."),
        ("mynt:build", "there is no module `mynt`; did you mean `mynet`?: it was looked for as mynt.py in "),
        ("nets.small:build", "there is no module `nets.small`: it was looked for as nets/small.py in "),
        ("broken:build", "broken.py, line 2, is not valid Python: "),
        (":build", "`:build` is not of the form `module.path:factory`"),
        ("my net:build", "is not of the form `module.path:factory`, such as `mynets.small:build`"),
        ("mynet.py:build:x", "is not of the form `module.path:factory`"),
    ],
)
def test_a_mistake_is_found_without_running_anything(own_modules, arch, message):
    modules = {"mynet": OWN, "empty": "", "broken": "\ndef build(:\n"}
    own_modules(modules | {"mynets/__init__": "", "mynets/small": OWN, "mynets/inner/large": OWN})
    for function in (networks.check, networks.code_modules, lambda arch: networks.build(arch, 10)):
        with pytest.raises(InputError) as caught:
            function(arch)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "from mynet import build",
        "from mynet import *",
        "import mynet\nif True:\n    build = mynet.build",
        "def __getattr__(name):\n    import mynet\n    return getattr(mynet, name)",
    ],
)
def test_a_factory_need_not_be_defined_in_the_module_itself(own_modules, text):
    own_modules({"mynet": OWN, "face": text})
    assert networks.build("face:build", 3)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_check_runs_no_code_of_the_users_and_imports_no_torch(tmp_path):
    (tmp_path / "mynet.py").write_text("import torch\nprint('run')\ndef build(num_classes):\n    pass\n")
    script = (
        "import sys; from pipeline.models import networks; networks.check('mynet:build'); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_timm_that_is_not_installed_is_asked_for():
    script = """
        from pipeline.models import networks
        try:
            networks.check("timm:repvgg_a0")
        except Exception as error:
            print(error)
    """
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    # -S: a Python without any installed package
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        '`timm:repvgg_a0` is a network of timm, which is not installed. Install it with `pip install "repnets[timm]"`.'
    )


def test_a_network_that_timm_does_not_have():
    with pytest.raises(InputError, match=r"timm \S+ has no network `repvg_a0`; did you mean `timm:repvgg_a0`\? timm"):
        networks.build("timm:repvg_a0", 10)
    with pytest.raises(InputError, match=r"has no network `hf-hub:someone/else`. timm.list_models\(\) gives all names"):
        networks.build("timm:hf-hub:someone/else", 10)


def test_a_network_of_timm_learns_and_is_fused(randomise_all):
    torch.manual_seed(0)
    model = networks.build("timm:repvgg_a0", 4)
    networks.require_runs(model, "timm:repvgg_a0", of(4, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    randomise_all(model)
    result = repnets.fuse(model.eval(), torch.zeros(1, 3, 32, 32))
    assert (result.report.before.convolutions, result.report.after.convolutions) == (44, 22)
    assert result.report.after.batch_norms == 0
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = model(images)
        assert (result.module(images) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.fixture
def randomise_all():
    """Moves every batch norm away from its defaults, which hide errors."""

    def move(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.data.uniform_(low, high, generator=generator)

    return move


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nothing_of_that_name\nbuild = 1",
            "`mine:build` cannot be built: ModuleNotFoundError: No module named 'nothing_of_that_name', "
            "in mine.py, line 1.",
        ),
        (
            "from torch import nn\ndef build(num_classes):\n    width = None\n    return nn.Linear(3 * width, 2)",
            "`mine:build` cannot be built: TypeError: unsupported operand type(s) for *: 'int' and 'NoneType', "
            "in mine.py, line 4.",
        ),
        (
            "build = 3",
            "`mine:build` is of type int and cannot be called. Name the function, or the class, that",
        ),
        (
            "def build(classes):\n    pass",
            "`mine:build` cannot be called as `build(num_classes=10)`: missing a required argument: 'classes'. Give it "
            "the argument `num_classes`, and every other one a default.",
        ),
        ("def build(num_classes):\n    pass", "`mine:build` returned a NoneType, and must return the network, an nn"),
    ],
)
def test_a_factory_that_fails_is_told_by_its_own_line(own_modules, text, message):
    own_modules({"mine": text})
    networks.check("mine:build")
    with pytest.raises(InputError) as caught:
        networks.build("mine:build", 10)
    assert message in str(caught.value)


class Aux(nn.Module):
    """Gives a second output while it is trained."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        logits = self.linear(self.norm(x).mean((2, 3)))
        return (logits, logits) if self.training else logits


def test_a_size_that_the_network_does_not_run_at_is_told():
    model = networks.build("torchvision.models:squeezenet1_1", 10)
    networks.require_runs(model, "m:squeezenet", of(10, 32))
    with pytest.raises(InputError) as caught:
        networks.require_runs(model, "m:squeezenet", of(10, 8))
    assert str(caught.value).startswith("`m:squeezenet` does not run on images of 8 x 8 pixels: RuntimeError: ")
    assert "set `image_size` (in pixels) under its name in `models:`, or in the target." in str(caught.value)


def test_what_is_no_logits_is_refused_in_the_mode_at_hand():
    networks.require_runs(Aux().eval(), "m:Aux", of(4, 8))
    with pytest.raises(InputError, match=r"`m:Aux` gives a tuple for two images in training mode, and must give"):
        networks.require_runs(Aux(), "m:Aux", of(4, 8))
    with pytest.raises(InputError, match=r"gives a tensor \(2, 4\) for two images in evaluation mode.*tensor \(2, 5\)"):
        networks.require_runs(Aux().eval(), "m:Aux", of(5, 8))


def test_trying_a_network_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    networks.require_runs(model, "m:net", of(4, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_code_of_the_users_module_counts_and_comments_do_not(own_modules):
    own_modules({"mynet": OWN})
    first = digest_of("mynet:build")
    own_modules({"mynet": OWN + "    # a comment\n"})
    assert digest_of("mynet:build") == first
    own_modules({"mynet": OWN.replace("width=8", "width=16")})
    assert digest_of("mynet:build") != first


@pytest.mark.parametrize(
    "imported", ["from .parts import WIDTH", "from mynets.parts import WIDTH", "from . import parts"]
)
def test_what_the_users_module_imports_counts_too(own_modules, imported):
    own_modules(
        {"mynets/net": f"{imported}\n{textwrap.dedent(OWN)}", "mynets/parts": "WIDTH = 8", "mynets/__init__": ""}
    )
    first = digest_of("mynets.net:build")
    own_modules({"mynets/parts": "WIDTH = 9"})
    second = digest_of("mynets.net:build")
    own_modules({"mynets/__init__": "import os"})
    assert len({first, second, digest_of("mynets.net:build")}) == 3
    own_modules({"mynets/other": "X = 1"})
    own_modules({"mynets/__init__": ""})
    assert digest_of("mynets.net:build") == second


def test_what_is_installed_counts_by_its_version(own_modules):
    """A package with a version of its own, put where packages are installed; then a later version of it."""
    own_modules({"site-packages/theirs": OWN, "mynet": "import theirs\nbuild = theirs.build"})
    sys.path.append("site-packages")

    def install(version: str) -> None:
        folder = Path("site-packages") / "theirs-1.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: theirs\nVersion: {version}\n")
        own_modules({})

    digests = []
    for version in ("1.0", "1.1"):
        install(version)
        digests += [digest_of("mynet:build"), digest_of("theirs:build")]
    assert len(set(digests)) == 4
    own_modules({"site-packages/theirs": OWN + "\n    X = 1\n"})
    assert [digest_of("mynet:build"), digest_of("theirs:build")] == digests[2:]


def test_timm_counts_by_its_version():
    import timm

    assert networks.code_modules("timm:repvgg_a0") == ("timm",)
    assert source_files.version("timm") == timm.__version__


def test_a_broken_module_beside_the_users_own_has_a_digest_and_fails_when_it_is_built(own_modules):
    own_modules({"mynet": f"import parts\n{textwrap.dedent(OWN)}", "parts": "def f(:"})
    assert digest_of("mynet:build")
    with pytest.raises(InputError, match=r"`mynet:build` cannot be built: SyntaxError: .* \(parts.py, line 1"):
        networks.build("mynet:build", 10)


def test_one_line_of_the_own_module_changes_no_other_networks_digest(own_modules):
    own_modules({"mynet": OWN, "other": OWN})
    before = {arch: digest_of(arch) for arch in ("mynet:build", "other:build", "toy")}
    own_modules({"mynet": OWN.replace("width=8", "width=16")})
    after = {arch: digest_of(arch) for arch in before}
    assert [arch for arch in before if before[arch] != after[arch]] == ["mynet:build"]
    assert json.dumps(after)


def test_the_network_of_the_documentation_is_built_and_fused(own_modules):
    text = (PROJECT / "docs/your-own-network.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    own_modules({"mynets/small": code})
    model = networks.build("mynets.small:build", 10)
    networks.require_runs(model, "mynets.small:build", of(10, 32))
    report = repnets.fuse(model.eval(), torch.zeros(1, 3, 32, 32)).report
    assert (report.before.convolutions, report.after.convolutions) == (4, 2)
