"""benchmarks/foreign_networks.py: its table, on a network that torchvision has and on one that is refused."""

import json

import pytest

from benchmarks import foreign_networks as benchmark


@pytest.mark.slow
def test_what_passes_and_what_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    output = tmp_path / "foreign.json"
    argv = ["--networks", "lraspp", "ssdlite", "--targets", "executorch", "--output", str(output)]
    assert benchmark.main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())["networks"]
    assert found["lraspp"]["targets"] == {"executorch": None} and found["lraspp"]["batch_norms"][1] == 0
    assert found["lraspp"]["accuracy"]["metric"] == "R2" and found["lraspp"]["accuracy"]["fused"] > 0.999
    assert found["ssdlite"]["targets"]["executorch"]["stage"] == "adopt"
    assert "| network | convolutions | batch norms | R2 %, fused | R2 %, int8 | executorch | s |" in printed
    assert "1 of 2 passed, 1 were refused, 0 are faults." in printed


def test_a_package_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        benchmark.main(["--networks", "yolov8n"])
    assert "ultralytics is not installed" in capsys.readouterr().err
