"""The stage that fuses: what it writes, and that the program knows where it came from."""

import json

import torch

from pipeline import checkpoints, store


def test_the_program_computes_what_the_branched_network_computes(artifacts):
    model, _ = checkpoints.load_model(artifacts.checkpoint)
    fused = checkpoints.as_module(torch.export.load(artifacts.fused))
    for shape in ((1, 3, 32, 32), (5, 3, 47, 32)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)


def test_nothing_but_three_convolutions_is_left(artifacts):
    report = json.loads(artifacts.report.read_text())
    assert (report["before"]["convolutions"], report["after"]["convolutions"]) == (6, 3)
    assert (report["before"]["batch_norms"], report["after"]["batch_norms"]) == (7, 0)
    targets = [str(node.target) for node in torch.export.load(artifacts.fused).graph.nodes]
    assert sum(target.startswith("aten.conv") for target in targets) == 3
    assert not any("batch_norm" in target or target.startswith("aten.add") for target in targets)


def test_the_program_carries_its_lineage(artifacts):
    extra = {"lineage.json": ""}
    torch.export.load(artifacts.fused, extra_files=extra)
    lineage = json.loads(extra["lineage.json"])
    assert lineage["checkpoint"] == store.digest(artifacts.checkpoint)
    assert lineage["weights"] == "raw"
    assert json.loads(artifacts.report.read_text())["lineage"] == lineage
