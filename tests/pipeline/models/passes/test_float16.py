import torch

from pipeline.models.passes.float16 import half


def test_weights_are_float16_and_both_ends_float32(programs, image):
    halved = half(programs["branched"])
    assert {weight.dtype for weight in halved.parameters()} == {torch.float16}
    logits = halved.module()(image)
    assert logits.dtype == torch.float32
    expected = programs["branched"].module()(image)
    error = (logits - expected).abs().max() / expected.abs().max()
    assert 0 < error < 5e-3


def test_the_given_program_is_left_as_it_is(programs, image):
    before = programs["fused"].module()(image)
    half(programs["fused"])
    assert {weight.dtype for weight in programs["fused"].parameters()} == {torch.float32}
    assert torch.equal(programs["fused"].module()(image), before)
