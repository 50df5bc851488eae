"""Every function takes what its operation has in coremltools, under the same names."""

import inspect

import pytest

from pipeline.backends.coreml.operations import NEVER_ROUND, OPERATIONS
from pipeline.quiet import quiet

with quiet():
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry


def test_there_are_operations():
    assert len(OPERATIONS) > 130
    assert set(OPERATIONS) >= NEVER_ROUND


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_inputs_are_those_of_mil(name):
    known = inspect.signature(OPERATIONS[name]).parameters
    for opset, operation in SSAOpRegistry.core_ops[name].items():
        inputs = operation.input_spec.input_types
        assert set(inputs) <= set(known), f"{opset}"
        for key, kind in inputs.items():
            if kind.optional:
                assert known[key].default is not inspect.Parameter.empty, f"{key} of {opset} may be left out"
