"""The worker gives a runtime's answers, and survives its death with an error that says what happened."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.backends.worker import client
from pipeline.benchmark import interleaved, timing
from pipeline.errors import InputError, StageError

AFFINE = "runtimes.affine"
BATCH = 4
BRIEFLY = interleaved.Until(0, min_runs=20, max_seconds=0.01, min_launches=2, max_launches=2)
WEIGHTS = np.arange(15, dtype=np.float32).reshape(3, 5) - 7


@pytest.fixture(autouse=True)
def runtimes(monkeypatch):
    """The worker, and who asks what it offers, find the runtimes of the tests."""
    folder = str(Path(__file__).parents[3] / "fixtures")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))


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
    got = client.predict(AFFINE, file, fed, session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(fed), rtol=1e-5, atol=1e-6)


def test_predicts_from_pieces_one_after_the_other(file, monkeypatch):
    monkeypatch.setattr(client, "_CHUNK_BYTES", 3 * 6 * 6 * 4 * BATCH)  # one batch a piece
    parts = [images(9), images(0), images(2)]
    got = client.predict(AFFINE, file, iter(parts), session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(np.concatenate(parts)), rtol=1e-5, atol=1e-6)


def test_a_strided_float64_array_is_fed_as_the_runtimes_need_it(file):
    fed = images(8).astype(np.float64).transpose(0, 1, 3, 2)[::2]
    got = client.predict(AFFINE, file, fed, session="own", batch=BATCH)
    np.testing.assert_allclose(got, expected(fed), rtol=1e-5, atol=1e-6)


def test_checking_uses_the_runtime_that_check_uses(file):
    got = client.predict(AFFINE, file, images(4), session="check", batch=BATCH)
    np.testing.assert_allclose(got, -expected(images(4)), rtol=1e-5, atol=1e-6)


def test_exact_is_another_session_of_the_same_file(file):
    got = client.predict(AFFINE, file, images(4), session="exact", batch=BATCH)
    np.testing.assert_allclose(got, 2 * expected(images(4)), rtol=1e-5, atol=1e-6)


def test_outputs_of_layers_come_by_name_in_their_order(file):
    got = client.outputs_by_layer(AFFINE, file, images(4))
    assert list(got) == ["mean", "product"]
    np.testing.assert_allclose(got["mean"], images(4).mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["product"], expected(images(4)), rtol=1e-5, atol=1e-6)


def test_no_image_is_an_error(file):
    with pytest.raises(InputError, match="there is no image to predict from"):
        client.predict(AFFINE, file, images(0), batch=BATCH)


def test_threads_are_set_before_the_runtime_starts(misbehaving):
    got = client.predict(AFFINE, misbehaving("threads"), images(1), threads=3, session="own")
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
        client.predict(AFFINE, file, images(1))
    text = str(caught.value)
    assert text.startswith(f"{file}: the process of the {AFFINE} runtime {cause} while opening it; ")
    assert why in text
    assert "last words of the runtime" in text
    assert "\n" not in text


def test_a_death_in_the_middle_of_a_prediction_is_told_as_such(file):
    fed = images(8)
    fed[5, 0, 0, 0] = np.inf
    with pytest.raises(StageError, match=r"died of SIGABRT \(Aborted\) while predicting with it"):
        client.predict(AFFINE, file, fed, batch=BATCH)


def test_an_error_of_the_runtime_comes_with_its_own_words(file):
    with pytest.raises(StageError, match=r"failed while predicting with it: RuntimeError: fed float32 \(1, 3, 6, 6\)"):
        client.predict(AFFINE, file, images(1), batch=1)


def test_an_error_of_the_project_keeps_its_kind_and_text(misbehaving):
    with pytest.raises(InputError, match=r"^this file is refused, with a reason\.$"):
        client.predict(AFFINE, misbehaving("refuses"), images(1))


def test_a_backend_that_is_not_there_is_named(file):
    with pytest.raises(StageError, match=r"ModuleNotFoundError: No module named 'runtimes\.nowhere'"):
        client.predict("runtimes.nowhere", file, images(1))


def jobs(**files: Path) -> dict[str, client.Job]:
    return {name: client.Job(AFFINE, file) for name, file in files.items()}


def test_times_both_forms_equally_often_in_every_launch(file):
    timed = timing.time_in_turn(jobs(fused=file, branched=file), images(4), threads=1, until=BRIEFLY)
    samples = timed.timing.samples_ms
    assert list(samples) == ["fused", "branched"]
    shapes = [launch.shape for launch in samples["fused"]]
    assert shapes == [launch.shape for launch in samples["branched"]]
    assert len(shapes) == 2
    assert sum(rounds * runs for rounds, runs in shapes) >= 20
    assert all((launch > 0).all() for launches in samples.values() for launch in launches)
    assert [len(warmup) for warmup in timed.timing.warmup.values()] == [2, 2]


def test_each_file_has_a_process_to_itself_and_a_fresh_one_in_every_launch(misbehaving, tmp_path):
    file = misbehaving("notes its process")
    timing.time_in_turn(jobs(fused=file, branched=file), images(4), threads=2, until=BRIEFLY)
    noted = (tmp_path / "processes").read_text().split()
    assert len(noted) == len(set(noted)) == 4
    assert all(process.endswith(":2:2") for process in noted)


def test_blocks_are_taken_in_turn(misbehaving, tmp_path):
    """The runs of both files stand in one list: whole blocks, of one file and the other by turns."""
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    for path in (one, other):
        path.write_text("notes its runs")
    timed = timing.time_in_turn(jobs(one=one, other=other), images(4), threads=1, until=BRIEFLY)
    noted = (tmp_path / "runs").read_text().split()
    turns = [len(list(runs)) for _, runs in itertools.groupby(noted)]
    blocks = [turn for turn in turns if turn > 1]  # one run alone is the start of a process
    rounds = sum(len(launch) for launch in timed.timing.samples_ms["one"])
    assert len(blocks) == 2 * (rounds + 2)  # in both launches each form is warmed up before
    assert min(blocks) > interleaved.BLOCK


def test_files_of_different_backends_are_timed_against_each_other(file):
    both = {"plain": client.Job(AFFINE, file), "clock": client.Job("runtimes.clocked", file)}
    timed = timing.time_in_turn(both, images(4), threads=1, until=BRIEFLY)
    assert all((launch == 7.5).all() for launch in timed.timing.samples_ms["clock"])
    assert all((launch < 7.5).all() for launch in timed.timing.samples_ms["plain"])


def test_a_runtime_that_takes_the_time_itself_is_let_do_so(file):
    timed = timing.time_in_turn({"own": client.Job("runtimes.timing", file)}, images(4), threads=1, until=BRIEFLY)
    (taken,) = timed.timing.samples_ms["own"]
    assert taken.tolist() == [[1.0, 2.0], [3.0, 4.0]]  # the second round's third run is left out
    assert set(timed.started["own"].values()) == {None}


def test_what_a_backend_does_not_offer_is_none(file):
    assert client.transfer_ms(client.Job(AFFINE, file), images(4)) is None
    assert client.profile(client.Job(AFFINE, file), images(4), 1, runs=3) is None


def test_what_a_backend_offers_is_passed_on(file):
    job = client.Job("runtimes.timing", file)
    assert client.transfer_ms(job, images(4)) == {"host_to_device": 0.5, "device_to_host": 0.25}
    assert client.profile(job, images(4), 2, runs=3) == [{"name": "fused", "kind": "product", "ms": 6.0}]


def test_a_runtime_that_dies_while_timed_is_told_as_such(file):
    with pytest.raises(StageError, match=rf"{file}: .* died of SIGABRT \(Aborted\) while running it"):
        timing.time_in_turn(jobs(fused=file), np.full((4, 3, 2, 2), np.inf), threads=1, until=BRIEFLY)


def test_a_second_file_that_cannot_be_opened_is_the_one_that_is_named(file, misbehaving):
    with pytest.raises(InputError, match=r"^this file is refused, with a reason\.$"):
        timing.time_in_turn(jobs(fused=file, other=misbehaving("refuses")), images(4), threads=1, until=BRIEFLY)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_start_counts_memory_that_was_used_and_given_back(misbehaving):
    timed = timing.time_in_turn(jobs(fused=misbehaving("hog")), images(1), 1, until=BRIEFLY)
    assert 99_000_000 < timed.started["fused"]["peak_memory_bytes"] < 150_000_000  # pages, so not to the byte


def test_the_start_that_is_told_is_without_what_python_imports(misbehaving):
    """The first launch finds out what opening imports, here half a second of it; the others import it before."""
    figures = timing.time_in_turn(jobs(fused=misbehaving("imports")), images(4), 1, until=BRIEFLY).started["fused"]
    assert 0 < figures["load_ms"] < 500 and figures["first_inference_ms"] > 0
