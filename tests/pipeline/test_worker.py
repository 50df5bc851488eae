"""The worker gives a runtime's answers, and survives its death with an error that says what happened."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import worker
from pipeline.errors import InputError, StageError

AFFINE = "runtimes.affine"
BATCH = 4
BRIEFLY = {"warmup_seconds": 0, "min_runs": 10, "max_seconds": 0.01}
WEIGHTS = np.arange(15, dtype=np.float32).reshape(3, 5) - 7


@pytest.fixture(autouse=True)
def runtimes(monkeypatch):
    """The worker finds the runtime of the tests, beside what was on its path before."""
    path = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "fused.npy", WEIGHTS)
    return tmp_path / "fused.npy"


@pytest.fixture
def misbehaving(tmp_path):
    def write(word: str) -> Path:
        path = tmp_path / "fused.bin"
        path.write_text(word)
        return path

    return write


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 6, 6), dtype=np.float32)


def expected(fed: np.ndarray) -> np.ndarray:
    return fed.mean((2, 3)) @ WEIGHTS


@pytest.mark.parametrize("count", [1, 4, 11])
def test_predicts_each_image_whatever_the_batch_leaves_over(file, count):
    fed = images(count)
    got = worker.predict(AFFINE, file, fed, session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(fed), rtol=1e-5, atol=1e-6)


def test_predicts_from_pieces_one_after_the_other(file, monkeypatch):
    monkeypatch.setattr(worker, "_CHUNK_BYTES", 3 * 6 * 6 * 4 * BATCH)  # one batch a piece
    parts = [images(9), images(0), images(2)]
    got = worker.predict(AFFINE, file, iter(parts), session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(np.concatenate(parts)), rtol=1e-5, atol=1e-6)


def test_a_strided_float64_array_is_fed_as_the_runtimes_need_it(file):
    fed = images(8).astype(np.float64).transpose(0, 1, 3, 2)[::2]
    got = worker.predict(AFFINE, file, fed, session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(fed), rtol=1e-5, atol=1e-6)


def test_checking_uses_the_runtime_that_check_uses(file):
    got = worker.predict(AFFINE, file, images(4), session="check", batch=BATCH)
    np.testing.assert_allclose(got, -expected(images(4)), rtol=1e-5, atol=1e-6)


def test_exact_is_another_session_of_the_same_file(file):
    got = worker.predict(AFFINE, file, images(4), session="exact", batch=BATCH)
    np.testing.assert_allclose(got, 2 * expected(images(4)), rtol=1e-5, atol=1e-6)


def test_outputs_of_layers_come_by_name_in_their_order(file):
    got = worker.outputs_by_layer(AFFINE, file, images(4))
    assert list(got) == ["mean", "product"]
    np.testing.assert_allclose(got["mean"], images(4).mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["product"], expected(images(4)), rtol=1e-5, atol=1e-6)


def test_no_image_is_an_error(file):
    with pytest.raises(InputError, match="there is no image to predict from"):
        worker.predict(AFFINE, file, images(0), batch=BATCH)


def test_threads_are_set_before_the_runtime_starts(misbehaving):
    got = worker.predict(AFFINE, misbehaving("threads"), images(1), threads=3, session="own")
    assert got.tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("word", "cause", "why"),
    [
        ("abort", "died of SIGABRT (Aborted)", "damaged file"),
        ("segfault", "died of SIGSEGV (Segmentation fault)", "damaged file"),
        ("memory", "died of SIGKILL", "memory ran out"),
        ("exit", "ended with exit code 3", "missing or cannot be loaded"),
    ],
)
def test_a_death_names_the_signal_the_file_and_what_to_do(misbehaving, word, cause, why):
    file = misbehaving(word)
    with pytest.raises(StageError) as caught:
        worker.predict(AFFINE, file, images(1))
    text = str(caught.value)
    assert text.startswith(f"{file}: the process of the {AFFINE} runtime {cause} while opening it; ")
    assert why in text
    assert "last words of the runtime" in text
    assert "\n" not in text


def test_a_death_in_the_middle_of_a_prediction_is_told_as_such(file):
    fed = images(8)
    fed[5, 0, 0, 0] = np.inf
    with pytest.raises(StageError, match=r"died of SIGABRT \(Aborted\) while predicting with it"):
        worker.predict(AFFINE, file, fed, batch=BATCH)


def test_an_error_of_the_runtime_comes_with_its_own_words(file):
    with pytest.raises(StageError, match=r"failed while predicting with it: RuntimeError: fed float32 \(1, 3, 6, 6\)"):
        worker.predict(AFFINE, file, images(1), batch=1)


def test_an_error_of_the_project_keeps_its_kind_and_text(misbehaving):
    with pytest.raises(InputError, match=r"^this file is refused, with a reason\.$"):
        worker.predict(AFFINE, misbehaving("refuses"), images(1))


def test_a_backend_that_is_not_there_is_named(file):
    with pytest.raises(StageError, match=r"ModuleNotFoundError: No module named 'runtimes\.nowhere'"):
        worker.predict("runtimes.nowhere", file, images(1))


def test_times_both_forms_equally_often(file):
    timed = worker.time_forms(
        AFFINE, {"fused": file, "branched": file}, images(4), threads=1, **(BRIEFLY | {"min_runs": 20})
    )
    samples = timed.timing.samples_ms
    assert list(samples) == ["fused", "branched"]
    assert samples["fused"].shape == samples["branched"].shape
    assert samples["fused"].size >= 20
    assert all((one > 0).all() for one in samples.values())
    assert timed.timing.warmup == {"fused": 2, "branched": 2}


def test_a_runtime_that_dies_while_timed_is_told_as_such(file):
    with pytest.raises(StageError, match=rf"{file}: .* died of SIGABRT \(Aborted\) while running it"):
        worker.time_forms(AFFINE, {"fused": file}, np.full((4, 3, 2, 2), np.inf), threads=1, **BRIEFLY)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_cold_start_counts_memory_that_was_used_and_given_back(misbehaving):
    figures = worker.cold_start(AFFINE, misbehaving("hog"), images(1), 1)
    assert 100_000_000 <= figures["peak_memory_bytes"] < 150_000_000


def test_a_cold_start_imports_the_runtime_before_its_clock_starts(misbehaving):
    file = misbehaving("imports")
    with pytest.raises(StageError, match="colorsys was not there"):
        worker.cold_start(AFFINE, file, images(1), 1)
    figures = worker.cold_start(AFFINE, file, images(1), 1, imported=("no.such.module", "colorsys"))
    assert figures["load_ms"] > 0 and figures["first_inference_ms"] > 0


def test_what_opening_a_file_imports_is_reported(misbehaving):
    timed = worker.time_forms(AFFINE, {"fused": misbehaving("lazy")}, images(4), threads=1, **BRIEFLY)
    assert timed.imported == ("colorsys",)
