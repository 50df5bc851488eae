import struct

import pytest

from pipeline.backends.tensorrt import engines
from pipeline.errors import InputError

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")


def made_by(tag, version, size=128):
    """An engine's header as TensorRT writes it, and nothing after it that could be loaded."""
    return tag + bytes(12) + struct.pack("<Q", size) + bytes(version) + bytes(size - 28)


@pytest.mark.parametrize("content", [b"", b"text, and no engine at all, you see", b"\xff\xfe\x80\x81" * 16, b"vtrt"])
def test_a_file_that_is_no_engine_is_named(tmp_path, content):
    (tmp_path / "bad.engine").write_bytes(content)
    for read in (engines.engine_maker, lambda file: engines.check_engine(file, "TensorRT")):
        with pytest.raises(InputError, match=r"bad\.engine is not a TensorRT engine"):
            read(tmp_path / "bad.engine")


def test_a_missing_engine_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.engine cannot be read: No such file.* Run the export again"):
        engines.engine_maker(tmp_path / "gone.engine")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_an_engine_that_is_cut_short_is_told_by_its_header(tensorrt_files, tmp_path, share):
    whole = tensorrt_files[0]["fused"][1].read_bytes()
    (tmp_path / "cut.engine").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"cut\.engine is cut short: .*its header says {len(whole)}\. Copy it again"):
        engines.engine_maker(tmp_path / "cut.engine")


def test_the_maker_of_a_full_tensorrt_engine_is_told_by_its_header(tmp_path):
    (tmp_path / "x.engine").write_bytes(made_by(b"ftrt", [10, 3, 0, 30]))
    assert engines.engine_maker(tmp_path / "x.engine") == ("TensorRT", "10.3.0.30")


def test_an_engine_of_the_other_maker_is_refused_before_it_is_loaded(tensorrt_files, tmp_path):
    with pytest.raises(InputError, match=r"built by TensorRT-RTX .*, and TensorRT is to load it, .*build_engine\.sh"):
        engines.check_engine(tensorrt_files[0]["fused"][1], "TensorRT", "10.3.0")
    (tmp_path / "x.engine").write_bytes(made_by(b"ftrt", [10, 3, 0, 30]))
    with pytest.raises(InputError, match=r"built by TensorRT 10\.3\.0\.30, and TensorRT-RTX is to load it"):
        engines.check_engine(tmp_path / "x.engine", "TensorRT-RTX", trt.__version__)


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(tensorrt_files, tmp_path):
    whole = bytearray(tensorrt_files[0]["fused"][1].read_bytes())
    whole[25] += 1
    (tmp_path / "x.engine").write_bytes(whole)
    with pytest.raises(
        InputError, match=rf"was built by TensorRT-RTX .*, and this is {trt.__version__}: an engine runs"
    ):
        engines.check_engine(tmp_path / "x.engine", "TensorRT-RTX", trt.__version__)


@pytest.mark.parametrize("told", [None, "10.13", "10.13.3", "10.13.3.9", "10.13.3.9.post1"])
def test_a_version_is_compared_as_far_as_it_is_told(tmp_path, told):
    (tmp_path / "x.engine").write_bytes(made_by(b"ftrt", [10, 13, 3, 9]))
    assert engines.check_engine(tmp_path / "x.engine", "TensorRT", told) == "10.13.3.9"


@pytest.mark.parametrize("told", ["10.3.0", "11.13.3", "10.13.3.10"])
def test_a_version_that_differs_in_any_number_is_another(tmp_path, told):
    (tmp_path / "x.engine").write_bytes(made_by(b"ftrt", [10, 13, 3, 9]))
    with pytest.raises(InputError, match=r"was built by TensorRT 10\.13\.3\.9, and this is"):
        engines.check_engine(tmp_path / "x.engine", "TensorRT", told)


def test_tensorrt_rtx_names_what_it_builds_for():
    known = engines.rtx_capabilities(trt)
    assert {"8.6", "8.9", "12.0"} <= set(known) and not {"8.7", "11.0"} & set(known), "no Jetson"
