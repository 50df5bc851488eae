"""`repnets bench`: files of several runtimes timed in turn, and those that cannot be."""

import json
import re
import shutil

import pytest

from pipeline.artifacts import digests
from pipeline.cli import main

BRIEFLY = ("--min-runs", 1, "--max-seconds", 0.1)


def run(*words: object) -> int:
    return main.main(["bench", *map(str, words)])


@pytest.fixture
def engine(tmp_path):
    """An engine of TensorRT, as far as its header says."""
    file = tmp_path / "a.engine"
    file.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)))
    return file


@pytest.mark.slow
def test_files_of_several_runtimes_are_timed_in_turn(exported_files, engine, tmp_path, capsys):
    files = (exported_files.fused_pte, exported_files.fused_onnx, exported_files.fused_pt2)
    assert run(*files, engine, *BRIEFLY, "--json", tmp_path / "out.json") == 0
    said = capsys.readouterr()
    head, *rows = (re.split(r"  +", line.strip()) for line in said.out.splitlines()[:5])
    assert head[:3] == ["file", "runtime", "p50 ms"] and head[-1] == "speed-up over the first"
    assert [row[0] for row in rows] == [*map(str, files), str(engine)]
    assert [row[1] for row in rows] == ["ExecuTorch", "ONNX Runtime", "PyTorch", "TensorRT"]
    assert rows[0][-1] == "1" and re.match(r"\d+\.\d\d \[\d", rows[1][-1]) and rows[3][2:] == [
        "unavailable", *("-",) * 5, "0.00", "-"
    ]  # fmt: skip
    assert f"{engine}: " in said.out and "to get a figure: " in said.out and "input 1 x 3 x 32 x 32" in said.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["input_shape"], written["baseline"]) == ([1, 3, 32, 32], str(files[0]))
    (timed,) = written["runs"]
    assert timed["threads"] == timed["conditions"]["threads"] == 1
    assert {"torch", "onnxruntime", "executorch"} <= timed["conditions"]["versions"].keys()
    assert written["schema"] == 1
    first, second, _, fourth = timed["files"]
    assert first["sha256"] == digests.digest(files[0]) and first["size_bytes"] == files[0].stat().st_size
    assert first["speedup"] is None and second["speedup"]["median"] > 0
    assert first["latency_ms"]["n"] >= 15 and first["load_ms"] > 0 and first["first_inference_ms"] > 0
    assert fourth["status"] == "unavailable" and "latency_ms" not in fourth


@pytest.mark.slow
def test_each_number_of_threads_has_a_table(exported_files, capsys):
    assert run(exported_files.fused_onnx, *BRIEFLY, "--threads", "1,2") == 0
    said = capsys.readouterr().out
    assert [line.partition("; ")[2] for line in said.splitlines() if "cores; " in line] == [
        "1 thread, input 1 x 3 x 32 x 32",
        "2 threads, input 1 x 3 x 32 x 32",
    ]


@pytest.mark.slow
def test_a_baseline_that_cannot_be_timed_leaves_no_ratio(exported_files, engine, capsys):
    assert run(engine, exported_files.fused_onnx, *BRIEFLY) == 0
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows[0][2] == "unavailable" and rows[1][-1] == "-"


@pytest.mark.slow
def test_a_damaged_file_ends_it_with_its_name(exported_files, tmp_path, capsys):
    shutil.copy(exported_files.fused_pte, tmp_path / "bad.pte")
    content = bytearray((tmp_path / "bad.pte").read_bytes())
    content[64:2048] = b"\xff" * (2048 - 64)
    (tmp_path / "bad.pte").write_bytes(content)
    assert run(exported_files.fused_pte, tmp_path / "bad.pte", *BRIEFLY) in (1, 2)
    assert "bad.pte" in capsys.readouterr().err


def test_where_no_runtime_is_here_nothing_is_timed(engine, capsys):
    assert run(engine) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: none of these files can be timed on this machine. ")


def test_a_file_is_named_once(exported_files, capsys):
    file = exported_files.fused_onnx
    assert run(file, file) == 2
    assert f"error: {file} is named twice, and a file is not faster than itself." in capsys.readouterr().err


def test_files_take_the_same_input(exported_files, tmp_path, capsys):
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 40, 40),)), tmp_path / "other.pt2")
    assert run(exported_files.fused_onnx, tmp_path / "other.pt2") == 2
    assert "takes an input of 1 x 3 x 32 x 32 and " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--threads", "0"), ("--threads", "1,x"), ("--min-runs", "0"), ("--image-size", "-1")]
)
def test_numbers_count_from_one(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "a.onnx", *words)
    assert ended.value.code == 2
    assert f"argument {words[0]}: invalid" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_anything_is_timed(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "a.onnx", "--json", tmp_path / "none" / "out.json")
    assert ended.value.code == 2
    assert f"there is no folder {tmp_path}/none to write out.json into; make it first" in capsys.readouterr().err
