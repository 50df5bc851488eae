"""Operations of a runtime get the names of the network's layers, or none at all."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.artifacts import documents
from pipeline.artifacts.profile_result import Operation, ProfileResult
from pipeline.benchmark.profile import named, program_layers
from pipeline.report.figures import operation_time


class Net(nn.Module):
    """A convolution, a depthwise one, a grouped one and a linear layer; and a weight that is no layer's."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False)
        self.wide = nn.Conv2d(8, 16, 1, groups=2)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head((self.wide(self.deep(self.stem(x))) * self.scale).mean((2, 3)))


EXPECTED = [
    {"node": "conv2d", "layer": "stem.0", "kind": "convolution", "weight": [8, 3, 3, 3]},
    {"node": "conv2d_1", "layer": "deep", "kind": "depthwise", "weight": [8, 1, 3, 3]},
    {"node": "conv2d_2", "layer": "wide", "kind": "convolution", "weight": [16, 4, 1, 1]},
    {"node": "linear", "layer": "head", "kind": "linear", "weight": [5, 16]},
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "fused.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(1, 3, 16, 16),)), path)
    return path


def operations(*kinds):
    return [{"name": f"operation {place}", "kind": kind, "ms": float(place)} for place, kind in enumerate(kinds)]


def test_layers_of_a_program_by_name_kind_and_weight(program):
    assert program_layers(program) == EXPECTED


def test_operations_with_weights_are_the_layers_in_their_order(program):
    told = operations("other", "convolution", "depthwise", "other", "convolution", "linear")
    got = named(told, program, inference_ms=20.0)
    assert (got.named, got.inference_ms, got.sum_ms) == (True, 20.0, 15.0)
    assert [one.layer for one in got.operations] == [None, "stem.0", "deep", None, "wide", "head"]
    assert documents.plain(got.operations[2]) == {
        "layer": "deep", "weight": [8, 1, 3, 3], "name": "operation 2", "kind": "depthwise", "ms": 2.0,
        "share": pytest.approx(2 / 15, abs=1e-6),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [
        ("convolution", "depthwise", "convolution"),
        ("convolution", "depthwise", "convolution", "convolution", "linear"),
        ("depthwise", "convolution", "convolution", "linear"),
        ("linear", "depthwise", "convolution", "linear"),
        ("convolution", "linear", "convolution", "linear"),
        ("convolution", "depthwise", "convolution", "convolution"),
    ],
    ids=["one too few", "one too many", "in another order", "3x3 as linear", "depthwise as linear", "no convolution"],
)
def test_where_they_do_not_agree_throughout_none_is_named(program, kinds):
    got = named(operations(*kinds), program, inference_ms=1.0)
    assert not got.named
    assert {one.layer for one in got.operations} == {None}


@pytest.mark.parametrize(
    "kinds",
    [("convolution", "convolution", "convolution", "linear"), ("convolution", "depthwise", "linear", "linear")],
    ids=["depthwise by the general routine", "single pixels as a product"],
)
def test_a_runtime_may_choose_another_routine_for_the_same(program, kinds):
    got = named(operations(*kinds), program, inference_ms=1.0)
    assert [one.layer for one in got.operations] == ["stem.0", "deep", "wide", "head"]


def test_the_slowest_layers_come_first_and_no_more_than_asked():
    timed = tuple(
        Operation(layer=None, weight=None, **one, share=one["ms"] / 190) for one in operations(*["other"] * 20)
    )
    profile = ProfileResult("ok", None, {}, "phone", "toy", "executorch", "fp32", "fused", operations=timed)
    assert [one.ms for one in profile.slowest()] == [float(ms) for ms in range(19, 9, -1)]
    assert [one.ms for one in profile.slowest(2)] == [19.0, 18.0]


def test_operations_that_take_no_time_have_no_share(program):
    told = [{"name": "a", "kind": "other", "ms": 0.0}]
    assert named(told, program, inference_ms=1.0).operations[0].share == 0.0


def test_a_runtime_that_names_its_operations_by_node_is_believed(program):
    """As TensorRT does, which joins several nodes to one operation."""
    names = ("Reformatting", "conv2d + relu", "conv2d_1", "conv2d_2 + mul", "mean", "linear")
    told = [{"name": name, "kind": "CaskConvolution", "ms": 1.0} for name in names]
    got = named(told, program, inference_ms=1.0)
    assert got.named
    assert [one.layer for one in got.operations] == [None, "stem.0", "deep", "wide", None, "head"]


def test_an_estimate_is_shown_as_one(program):
    told = [{"name": "conv2d", "kind": "other", "ms": 1.5, "estimated": True}]
    (one,) = named(told, program, inference_ms=2.0).operations
    assert operation_time(one) == "~1.500"
    assert operation_time(replace(one, estimated=None)) == "1.500"
