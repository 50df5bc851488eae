"""Pictures are read back as XML: what is in which box, and which boxes are joined."""

import sys
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import repnets
import repnets.networks.blocks
from repnets.drawing import svg

SVG = "{http://www.w3.org/2000/svg}"


class Squeezed(nn.Module):
    """Ends in a step of its own, beside a named block."""

    def __init__(self):
        super().__init__()
        self.block = repnets.networks.blocks.RepVGGBlock(4, 16, use_se=True)

    def forward(self, x):
        return self.block(x).amax((2, 3))


def read(svg):
    """Of each box the lines of its text, by its name; and the pairs of boxes that are joined."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    boxes, joined = {}, []
    for group in root.iter(f"{SVG}g"):
        title = group.findtext(f"{SVG}title")
        if group.get("class") in ("node", "cluster"):
            boxes[title] = ["".join(line.itertext()).replace("\xa0", " ").strip() for line in group.iter(f"{SVG}text")]
        elif group.get("class") == "edge":
            joined.append(tuple(title.split("->")))
    return boxes, joined


@pytest.fixture(scope="module")
def toy(randomise):
    model = randomise(repnets.create_model("toy", num_classes=10))
    example = torch.zeros(1, 3, 32, 32)
    return svg.scene(example, repnets.fuse(model, example))


def test_the_network_has_a_box_for_each_block_and_for_each_folded_convolution(toy):
    boxes, joined = read(svg.draw_network(toy, "toy <3"))
    blocks = ["stage1", "stage2", "stage3", "head"]
    assert {f"{side}: {name}" for side in ("before", "after") for name in blocks} <= set(boxes)
    assert boxes["before: stage2"] == [
        "stage2",
        "RepVGGBlock",
        "64 → 128, /2 · conv 3×3 · conv 1×1 · 2 BN · add · ReLU",
    ]
    assert boxes["after: stage2"] == ["conv 3×3", "64 → 128, /2", "ReLU"]
    assert boxes["after: stage3"] == ["conv 3×3", "128 → 128", "ReLU"]
    assert boxes["after: head"] == ["head", "mean · linear"]
    assert boxes["before"] == [
        "In training",
        "6 convolutions, 7 batch norms, 4 additions",
        "0.25 M parameters, 16 MMAC",
    ]
    assert boxes["after"][:2] == ["Fused", "3 convolutions, no batch norm, no addition"]
    assert ("before: stage1", "before: stage2") in joined
    assert [(f"before: {name}", f"after: {name}") for name in blocks[:3]] == [
        pair for pair in joined if pair[0].startswith("before: ") and pair[1].startswith("after: ")
    ]


def test_the_title_is_text_whatever_is_in_it(toy):
    root = ElementTree.fromstring(svg.draw_network(toy, 'toy <3 & "more"'))
    assert 'toy <3 & "more"' in {text.text.replace("\xa0", " ") for text in root.iter(f"{SVG}text")}


def test_a_block_shows_its_branches_and_what_took_their_place(toy):
    boxes, joined = read(svg.draw_block(toy, "stage3"))
    before = sorted(text for name, text in boxes.items() if name.startswith("before: "))
    assert before == sorted(
        [
            *[["128 × 8 × 8"]] * 2,  # in and out
            ["conv 3×3", "128 → 128"],
            ["conv 1×1", "128 → 128"],
            *[["BN"]] * 3,
            ["+"],  # both additions as one
            ["ReLU"],
        ]
    )
    after = sorted(text for name, text in boxes.items() if name.startswith("after: "))
    assert after == sorted([*[["128 × 8 × 8"]] * 2, ["conv 3×3", "128 → 128"], ["ReLU"]])
    assert sum(name.startswith("cluster") for name in boxes) == 1
    sums = [name for name, text in boxes.items() if text == ["+"]]
    assert sum(pair[1] == sums[0] for pair in joined) == 3


def test_the_network_itself_can_be_drawn_operation_by_operation(toy):
    boxes, _ = read(svg.draw_block(toy, ""))
    assert sum(text[:1] == ["BN"] for text in boxes.values()) == 7
    assert sum(name.startswith("cluster") for name in boxes) == 3


def test_a_block_that_is_not_there_is_refused_with_the_nearest(toy):
    with pytest.raises(repnets.RepnetsError, match=r"nothing in a block 'stage_3'\. Did you mean 'stage3'\?"):
        svg.draw_block(toy, "stage_3")


def test_the_busiest_block_is_the_one_with_most_branches(toy):
    assert svg.busiest_block(toy) == "stage3"


def test_draw_fuses_for_itself_and_draws_the_same_twice(randomise):
    model = randomise(Squeezed())
    example = torch.zeros(1, 4, 16, 16)
    svg = repnets.draw(model, example, title="gated")
    assert svg == repnets.draw(model, example, title="gated", result=repnets.fuse(model, example))
    boxes, _ = read(svg)
    assert boxes["after: block"] == ["conv 3×3", "4 → 16", "2 conv 1×1 · × · 2 ReLU · sigmoid · mean"]
    assert ["amax"] in boxes.values()
    block, _ = read(repnets.draw(model, example, block="block"))
    assert ["sigmoid"] in block.values()
    assert ["amax"] not in block.values()


def test_what_is_folded_across_blocks_is_shown_whole(randomise):
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    example = torch.zeros(1, 3, 16, 16)
    shown = svg.scene(example, repnets.fuse(model, example))
    boxes, joined = read(svg.draw_network(shown))
    assert boxes["after: 0"] == ["conv 3×3", "3 → 4"]
    assert "after: 1" not in boxes
    assert {("before: 0", "after: 0"), ("before: 1", "after: 0")} <= set(joined)
    block, _ = read(svg.draw_block(shown, "1"))
    assert {"conv 3×3", "BN"} <= {text[0] for text in block.values() if text}


def test_without_graphviz_it_says_what_to_install(monkeypatch, toy):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)  # the import system's own mark of a module not there
    for attempt in (
        lambda: repnets.draw(nn.Identity(), torch.zeros(1, 3, 8, 8)),
        lambda: svg.draw_network(toy),
        lambda: svg.draw_block(toy, "stage1"),
    ):
        with pytest.raises(repnets.RepnetsError, match=r"Install it: pip install 'repnets\[pictures\]'"):
            attempt()
