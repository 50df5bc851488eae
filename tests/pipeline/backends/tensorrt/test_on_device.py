"""TensorRT on a device: what trtexec is asked there, by a stand-in that writes what the real one writes."""

import pytest

from pipeline import devices
from pipeline.backends.tensorrt import backend, on_device
from pipeline.errors import DeviceError, StageError


@pytest.fixture
def files(programs, spec, tmp_path):
    from pipeline.backends.onnx import backend as onnx

    written = {form: tmp_path / f"{form}.onnx" for form in ("fused", "branched")}
    for form, file in written.items():
        onnx.export(programs[form], [file], spec("fp32"))
    backend.BACKEND.write_extras([tmp_path / "build_engine.sh"], spec())
    return written, tmp_path / "build_engine.sh"


@pytest.mark.slow
def test_engines_are_built_there_and_timed_in_turn(ssh_device, trtexec_stand_in, files, image):
    told, (onnx_files, script) = trtexec_stand_in(), files
    device = devices.parse(ssh_device.url)
    with on_device.on_device(device, onnx_files, script, tuple(image.shape)) as built:
        rounds = built.time_files(warmup_seconds=0.1, min_runs=20, max_seconds=1)
        assert {form: len(taken) for form, taken in rounds.items()} == {"fused": 10, "branched": 10}
        assert all(taken == [0.8] * 5 for of_form in rounds.values() for taken in of_form)
        assert built.transfer_ms("fused") == {"host_to_device": 0.02, "device_to_host": 0.01}
        assert built.profile("fused", 7) == [{"name": "conv", "kind": "CaskConvolution", "ms": 0.3}]
        assert built.time_alone("fused", 2) == [0.8] * 5
        assert built.place.version == "10.3.0"
    builds = [call for call in told() if "saveEngine" in call]
    assert [call["onnx"] for call in builds] == ["branched.onnx", "fused.onnx"]
    assert {"stronglyTyped", "noTF32", "skipInference"} <= set(builds[0]), "the target's own options"
    timed = [call["loadEngine"].rpartition("/")[2] for call in told() if "loadEngine" in call]
    assert timed[:4] == ["fused.engine", "branched.engine"] * 2
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


@pytest.mark.slow
def test_the_timing_cache_stays_on_the_device(ssh_device, trtexec_stand_in, files, image):
    trtexec_stand_in()
    device = devices.parse(ssh_device.url)
    for _ in range(2):
        with on_device.on_device(device, *files, tuple(image.shape)):
            pass
    (cache,) = (ssh_device.home / ".local" / "share" / "repnets" / "timing").iterdir()
    assert (cache.name, cache.read_text()) == ("build-v100300.timing", "once" + "again" * 3)


def test_a_build_that_fails_is_told_in_trtexecs_own_words(ssh_device, trtexec_stand_in, files, image):
    trtexec_stand_in(code=1)
    device = devices.parse(ssh_device.url)
    with (
        pytest.raises(StageError, match=r"could not be built on ssh://.* by TensorRT 10\.3\.0 .*Error\[2\]: no kernel"),
        on_device.on_device(device, *files, tuple(image.shape)),
    ):
        pass
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_a_device_without_trtexec(ssh_device):
    with pytest.raises(DeviceError, match=r"has no trtexec, which builds .*On a Jetson it comes with JetPack"):
        on_device.versions(devices.parse(ssh_device.url))


def test_a_trtexec_that_cannot_be_run(ssh_device):
    (ssh_device.folder / "bin" / "trtexec").write_text("#!/no/such/interpreter\n")
    (ssh_device.folder / "bin" / "trtexec").chmod(0o755)
    with pytest.raises(DeviceError, match=r"trtexec on ssh://.* cannot be run: .*It may be built for another machine"):
        on_device.versions(devices.parse(ssh_device.url))
