import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.artifacts import digests
from pipeline.backends.executorch import backend, pte
from pipeline.errors import InputError, StageError

FORMS = ("fused", "branched")
TOLERANCE = {"fp32": 1e-6, "fp16": 5e-3}
CASTS = {"dim_order_ops::_to_dim_order_copy.out": 2}


@pytest.fixture(scope="module")
def pte_files(programs, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    files, facts = {}, {}
    for key in [("fp32", "fused"), ("fp32", "branched"), ("fp16", "fused")]:
        precision, form = key
        files[key] = folder / f"{precision}-{form}.pte"
        facts[key] = backend.export(programs[form], [files[key]], spec(precision))
    return files, facts


@pytest.mark.parametrize(("precision", "form"), [("fp32", "fused"), ("fp32", "branched"), ("fp16", "fused")])
def test_numbers_of_the_file_are_those_of_the_program(pte_files, programs, image, precision, form):
    logits = backend.RUNTIME.open_session(pte_files[0][precision, form], threads=1)(image.numpy())[0]
    expected = programs[form].module()(image).detach().numpy()
    assert logits.dtype == np.float32 and logits.shape == (1, 5)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE[precision]
    if precision == "fp16":
        assert error > TOLERANCE["fp32"], "the arithmetic was not float16"


def test_an_input_in_another_memory_order_gives_the_same_logits(pte_files, image):
    run = backend.RUNTIME.open_session(pte_files[0]["fp32", "fused"], threads=1)
    expected = run(image.numpy())
    channels_last = image.contiguous(memory_format=torch.channels_last).numpy()
    assert not channels_last.flags.c_contiguous
    assert np.array_equal(run(channels_last), expected)


def test_census_reads_what_the_file_runs(pte_files):
    fused, branched = (backend.census(pte_files[0]["fp32", form]) for form in FORMS)
    assert (fused["convolution"], fused["XNNConv2d"], fused["batch_norm"], fused["total"]) == (3, 3, 0, 8)
    # XNNPACK runs the batch norm that follows no convolution as a depthwise one.
    counted = [branched[name] for name in ("convolution", "XNNConv2d", "XNNDepthwiseConv2d", "XNNAdd")]
    assert counted == [7, 6, 1, 4]
    half = backend.census(pte_files[0]["fp16", "fused"])
    assert (half["convolution"], half["total"]) == (3, 10)


def test_facts_say_what_stays_outside_xnnpack(pte_files):
    expected = {"maker": "ExecuTorch", "delegate": "XNNPACK", "delegate_calls": 1}
    for (precision, _), facts in pte_files[1].items():
        assert expected.items() <= facts.items()
        assert facts["operations_outside"] == ({} if precision == "fp32" else CASTS)
        assert facts["fully_delegated"] == (precision == "fp32")


@pytest.mark.slow
def test_an_operation_that_xnnpack_lacks_is_named(spec, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LogSoftmax(-1)).eval()
    program = torch.export.export(net, (torch.randn(1, 3, 16, 16),))
    facts = backend.export(program, [tmp_path / "x.pte"], spec())
    assert facts["operations_outside"] == {"aten::_log_softmax.out": 1}
    assert not facts["fully_delegated"]


@pytest.mark.slow
def test_same_program_same_bytes_in_another_process(pte_files, program_files, elsewhere):
    again = elsewhere("executorch", program_files["fused"], "fp32", {}) / "fused.pte"
    assert digests.digest(again) == digests.digest(pte_files[0]["fp32", "fused"])


def test_the_file_names_no_path_of_this_machine(pte_files):
    content = pte_files[0]["fp32", "branched"].read_bytes()
    for trace in (str(Path(__file__).parents[4]), sys.prefix, "site-packages", ".py"):
        assert trace.encode() not in content


def test_another_shape_than_the_files_own_is_refused(pte_files):
    run = backend.RUNTIME.open_session(pte_files[0]["fp32", "fused"], threads=1)
    with pytest.raises(InputError, match=re.escape("takes an input of shape (1, 3, 16, 16), but got (2, 3, 16, 16)")):
        run(np.zeros((2, 3, 16, 16), np.float32))


def test_threads_of_a_process_cannot_change(pte_files):
    backend.RUNTIME.open_session(pte_files[0]["fp32", "fused"], threads=1)
    with pytest.raises(StageError, match="on 1 threads and cannot change to 2"):
        backend.RUNTIME.open_session(pte_files[0]["fp32", "fused"], threads=2)


@pytest.mark.slow
def test_two_threads_give_the_same_logits(pte_files, image, tmp_path):
    np.save(tmp_path / "image.npy", image.numpy())
    file = pte_files[0]["fp32", "fused"]
    code = (
        "import numpy, pathlib\n"
        "from pipeline.backends.executorch import backend as executorch\n"
        f"run = executorch.RUNTIME.open_session(pathlib.Path({str(file)!r}), 2)\n"
        f"numpy.save({str(tmp_path / 'logits.npy')!r}, run(numpy.load({str(tmp_path / 'image.npy')!r}))[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), backend.RUNTIME.open_session(file, 1)(image.numpy())[0])


@pytest.mark.parametrize(
    "use", [backend.census, lambda file: backend.RUNTIME.open_session(file, 1)], ids=["census", "open"]
)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not an ExecuTorch program: it is empty"),
        (b"epoch 1: accuracy 97.3 %\n" * 9, "is not an ExecuTorch program: it starts with b'epoch 1:'"),
        (b"\xff\xfe\x80\x81" * 64, "is not an ExecuTorch program: it starts with"),
        (0.6, r"is cut short: \d+ bytes of \d+"),
        (0.001, "is cut short: 20 bytes of 40"),
    ],
    ids=["empty", "text", "garbage", "truncated", "head only"],
)
def test_a_bad_file_is_named_before_the_runtime_sees_it(pte_files, tmp_path, use, content, told):
    whole = pte_files[0]["fp32", "fused"].read_bytes()
    file = tmp_path / "bad.pte"
    file.write_bytes(content if isinstance(content, bytes) else whole[: max(20, int(content * len(whole)) - 30)])
    with pytest.raises(InputError, match=rf"bad\.pte {told}.*run the export again|bad\.pte {told}.*Run the export"):
        use(file)


def test_damage_anywhere_in_the_program_never_escapes_the_reader(pte_files, tmp_path):
    whole = pte_files[0]["fp32", "fused"].read_bytes()
    random = np.random.default_rng(0)
    file, refused = tmp_path / "damaged.pte", 0
    for _ in range(200):
        content = bytearray(whole)
        for place in random.integers(32, 3000, 8):
            content[place] = random.integers(256)
        file.write_bytes(content)
        try:
            pte.read(file)
        except InputError:
            refused += 1
    assert 0 < refused < 200


def test_an_unsupported_operation_is_named(unsupported, spec, tmp_path):
    with pytest.raises(StageError, match=r"cannot lower the network: .*linalg_matrix_exp.* Replace the operation"):
        backend.export(unsupported, [tmp_path / "x.pte"], spec())
    assert not (tmp_path / "x.pte").exists()
