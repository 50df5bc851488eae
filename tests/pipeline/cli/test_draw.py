"""`repnets draw`: pictures of networks as users name them."""

import pytest
import torch
from torch import nn

from pipeline.cli import main
from repnets.networks.blocks import RepVGGBlock

pytest.importorskip("pygraphviz", reason="pip install repnets[pictures] brings Graphviz")


def run(*words: object) -> int:
    return main.main(["draw", *map(str, words)])


def test_a_network_and_the_block_in_which_most_is_folded(tmp_path, capsys):
    assert run("toy", tmp_path / "toy.svg", "--size", "32") == 0
    assert "most is folded in `stage3`: --block stage3" in capsys.readouterr().out
    assert run("toy", tmp_path / "stage3.svg", "--size", "32", "--block", "stage3") == 0
    whole, block = ((tmp_path / f"{name}.svg").read_text() for name in ("toy", "stage3"))
    assert "<title>before: stage1</title>" in whole and "<title>before: stage1</title>" not in block


def test_a_program_of_several_blocks(tmp_path, capsys):
    network = nn.Sequential(RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 24, 16),)), tmp_path / "theirs.pt2")
    assert run(tmp_path / "theirs.pt2", tmp_path / "theirs.svg") == 0
    assert "</svg>" in (tmp_path / "theirs.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy", "toy.png"], "toy.png is none of .svg"),
        (["toy", "toy.svg", "--block", "stage9"], "stage9"),
        (["tyo", "toy.svg"], "did you mean"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
