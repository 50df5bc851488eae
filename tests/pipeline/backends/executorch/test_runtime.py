"""Where ExecuTorch says that the time goes, on real files: which operations, in which order, and how long."""

import time

import pytest

from pipeline import backends
from pipeline.backends.executorch import backend, flatbuffer, runtime
from pipeline.errors import InputError, StageError

RUNS = 20


@pytest.fixture(scope="module")
def files(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    made = {form: folder / f"{form}.pte" for form in ("fused", "branched")}
    for form, file in made.items():
        backend.export(programs[form], [file], spec("fp32"))
    return made


def test_operations_come_in_their_order_and_by_their_kind(files, image):
    told = backends.load("executorch").runtime.profile(files["fused"], 1, image.numpy(), RUNS)
    assert [one["kind"] for one in told if one["kind"] != "other"] == ["convolution"] * 3 + ["linear"]
    convolutions = [one["name"] for one in told if one["kind"] == "convolution"]
    assert all(name.startswith("Convolution (NHWC, F32)") for name in convolutions)
    assert [name.rpartition("#")[2] for name in convolutions] == ["1", "2", "3"]
    assert all(one["ms"] >= 0 for one in told)


def test_each_operation_is_told_of_once_and_none_is_longer_than_all(files, image):
    """An operation and the call around it, counted both, would be more than the whole."""
    run = backend.RUNTIME.open_session(files["branched"], 1)
    begin = time.perf_counter()
    for _ in range(RUNS):
        run(image.numpy())
    told = backend.RUNTIME.profile(files["branched"], 1, image.numpy(), RUNS)
    names = [one["name"] for one in told]
    assert len(set(names)) >= len(names) - 1  # each delegate counts by itself, and there can be two
    assert not any(name.endswith(("_CALL", "execute")) for name in names)
    assert sum(one["ms"] for one in told) < 1000 * (time.perf_counter() - begin)
    assert [one["kind"] for one in told].count("depthwise") == 1  # the batch norm that follows no convolution


def test_the_middle_half_of_the_runs_counts():
    assert runtime._typical([1.0, 2.0, 3.0, 100.0]) == 2.5
    assert runtime._typical([7.0]) == 7.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Convolution (NHWC, F32) IGEMM #3", "convolution"),
        ("Convolution (NHWC, F32) DWConv #1", "depthwise"),
        ("Convolution (NHWC, QS8, QC8W) GEMM #2", "convolution"),
        ("Fully Connected (NC, F32) GEMM #1", "linear"),
        ("addmm.out", "linear"),
        ("Convert (NC, F32, QS8) #1", "other"),
        ("mean.out", "other"),
    ],
)
def test_kinds(name, kind):
    assert runtime._kind(name) == kind


def test_a_trace_of_fewer_runs_than_were_made_is_an_error(files, image, monkeypatch):
    monkeypatch.setattr(flatbuffer.FlatBuffer, "tables", lambda data, table, slot: iter(()))
    with pytest.raises(StageError, match=r"fused\.pte: ExecuTorch's event trace holds 0 executions of 20"):
        backend.RUNTIME.profile(files["fused"], 1, image.numpy(), RUNS)


def test_an_image_of_another_shape_is_refused(files, image):
    with pytest.raises(InputError, match="takes an input of shape"):
        backend.RUNTIME.profile(files["fused"], 1, image.numpy()[:, :, :8], RUNS)
