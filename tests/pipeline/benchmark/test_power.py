"""Power rails as tegrastats prints them, and the energy of an inference. A stand-in prints; no Jetson was at hand."""

from contextlib import contextmanager

import pytest

from pipeline import devices
from pipeline.benchmark import power
from pipeline.benchmark.runners import Runner
from pipeline.errors import DeviceError

ORIN_NANO = (
    "02-27-2024 18:35:51 RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729,0%@729,off,off] EMC_FREQ "
    "0%@2133 GR3D_FREQ 0%@305 cpu@46.5C gpu@45C VDD_IN 4940mW/4890mW VDD_CPU_GPU_CV 560mW/558mW VDD_SOC 1498mW/1490mW"
)
NANO = (
    "RAM 1021/3956MB (lfb 534x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,0%@102,0%@102,0%@102] PLL@32C "
    "POM_5V_IN 2106/2000 POM_5V_GPU 40/39 POM_5V_CPU 324/300"
)
AGX_ORIN = (
    "RAM 3456/30536MB (lfb 5882x4MB) VDD_GPU_SOC 2774mW/2774mW VDD_CPU_CV 793mW/793mW VIN_SYS_5V0 3728mW/3728mW "
    "VDDQ_VDD2_1V8AO 402mW/402mW"
)


@pytest.mark.parametrize(
    ("line", "rails", "total"),
    [
        (ORIN_NANO, {"VDD_IN": 4940, "VDD_CPU_GPU_CV": 560, "VDD_SOC": 1498}, 4940),
        (NANO, {"POM_5V_IN": 2106, "POM_5V_GPU": 40, "POM_5V_CPU": 324}, 2106),
        (AGX_ORIN, {"VDD_GPU_SOC": 2774, "VDD_CPU_CV": 793, "VIN_SYS_5V0": 3728, "VDDQ_VDD2_1V8AO": 402}, 7697),
        ("RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB", {}, 0),
    ],
)
def test_rails_are_read_and_memory_is_none(line, rails, total):
    assert power.rails_mw(line) == rails
    assert power.total_mw(rails) == total


@pytest.fixture
def jetson(ssh_device):
    """A device with a stand-in for tegrastats: 5 W, and 9 W while the file `busy` is there."""

    line = ORIN_NANO.replace("4940mW/4890mW", "$mw/4890mW")

    def make():
        program = ssh_device.folder / "bin" / "tegrastats"
        busy = ssh_device.folder / "busy"
        program.write_text(
            f"#!/bin/sh\nwhile sleep 0.01; do\n"
            f'    if [ -f {busy} ]; then mw=9000mW; else mw=5000mW; fi\n    echo "{line}"\ndone\n'
        )
        program.chmod(0o755)
        return devices.parse(ssh_device.url), busy

    return make


def runner_on(device, busy):
    @contextmanager
    def alone(form, image, threads):
        def run_for(seconds):
            busy.touch()
            seen = device.run("i=0; while [ $i -lt 20 ]; do i=$((i + 1)); sleep 0.01; done; echo done").stdout
            assert seen == "done\n"
            return [2.0] * 50

        yield run_for
        busy.unlink()

    return Runner(device, {}, None, None, None, alone, lambda: None)


def test_energy_is_what_comes_on_top_of_idle(jetson, ssh_device):
    device, busy = jetson()
    got = power.measure(runner_on(device, busy), ["fused", "branched"], None, 1, idle_samples=5)
    assert (got["idle_mw"], got["measured"], got["source"]) == (5000, "VDD_IN", "tegrastats")
    assert set(got["forms"]) == {"fused", "branched"}
    for form in got["forms"].values():
        assert (form["mw"], form["energy_mj"]) == (9000, pytest.approx(4000 * 2.0 / 1000))
    assert ssh_device.left() == [], "tegrastats was ended"


def test_without_tegrastats_there_is_no_power(ssh_device):
    device = devices.parse(ssh_device.url)
    assert power.measure(runner_on(device, None), ["fused"], None, 1) is None


def test_a_tegrastats_without_rails_is_told(jetson, ssh_device):
    device, busy = jetson()
    (ssh_device.folder / "bin" / "tegrastats").write_text("#!/bin/sh\necho RAM 1/2MB\n")
    with pytest.raises(DeviceError, match=r"tegrastats on ssh://.* printed 0 lines with power rails"):
        power.measure(runner_on(device, busy), ["fused"], None, 1)


@pytest.mark.parametrize(
    "line",
    ["exec cat /dev/zero", "exec head -c 300000000 /dev/zero | tr '\\0' 9", "exec yes VDD_IN 99999999999/1", "exit 0"],
)
def test_a_tegrastats_that_floods_is_told(jetson, ssh_device, monkeypatch, line):
    monkeypatch.setattr(power, "_PATIENCE_SECONDS", 1)
    device, busy = jetson()
    (ssh_device.folder / "bin" / "tegrastats").write_text(f"#!/bin/sh\n{line}\n")
    with pytest.raises(DeviceError, match=r"tegrastats on ssh://.* printed 0 lines with power rails"):
        power.measure(runner_on(device, busy), ["fused"], None, 1)
    assert ssh_device.left() == []
