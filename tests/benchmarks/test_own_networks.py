"""benchmarks/own_networks.py: its networks are networks, and its table says what passed, what was refused and why."""

import json

import pytest
import torch

from benchmarks import own_networks as benchmark
from tests.fixtures import own_networks


@pytest.mark.parametrize("name", own_networks.NETWORKS)
def test_a_network_takes_images_and_gives_logits(name):
    images = torch.zeros(2, 1 if name in benchmark.GRAY else 3, 32, 32)
    assert getattr(own_networks, name)(num_classes=7).eval()(images).shape == (2, 7)


def test_a_network_that_takes_no_such_images_is_refused_in_its_own_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(benchmark, "GRAY", ())
    output = tmp_path / "own.json"
    argv = ["--networks", "one_channel", "--targets", "executorch", "executorch-int8", "--output", str(output)]
    assert benchmark.main(argv) == 0
    printed = capsys.readouterr().out
    row = "| input of one channel | - | - | - | - | refused [1] | refused [1] |"
    assert row in printed and "[1] train: `tests.fixtures.own_networks:one_channel` does not run on images" in printed
    assert "0 of 2 passed, 2 were refused, 0 are faults." in printed
    assert benchmark.main(["--read", str(output)]) == 0
    assert capsys.readouterr().out == printed


def test_any_other_error_is_a_fault_and_says_where(tmp_path, capsys):
    found = benchmark._attempt("export", tmp_path, lambda: {}["a key"])
    assert found == {"stage": "export", "fault": True, "reason": "KeyError: 'a key'"}
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--networks", "--targets"])
def test_a_name_that_is_none_is_refused_with_the_nearest(option, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([option, "lenot" if option == "--networks" else "executorchs"])
    assert "did you mean `" in capsys.readouterr().err


def test_the_table_of_what_failed(tmp_path):
    about = {"cpu": "a CPU", "cores": 2, "threads": 1, "versions": dict.fromkeys(benchmark.PACKAGES, "1.0")}
    fault = {"stage": "check", "fault": True, "reason": "KeyError: 'x'"}
    one = {"title": "a network", "convolutions": [4, 2], "batch_norms": [4, 0], "accuracy": {"fused": 0.5},
           "targets": {"a": None, "b": fault}, "seconds": 3.2}  # fmt: skip
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps(
            {
                "conditions": about,
                "weights": "2 epochs of training",
                "scores": ["top-1 %", "int8 %"],
                "networks": {"own": one},
            }
        )
    )
    shown = benchmark.text(json.loads(file.read_text()))
    assert "| a network | 4 to 2 | 4 to 0 | 50.00 | - | passed | fault [1] | 3 |" in shown
    assert (
        "[1] **a fault** in check: KeyError: 'x'" in shown and "1 of 2 passed, 0 were refused, 1 are faults." in shown
    )
