"""int8 of random networks: quantization ends, from statistics of the tensors themselves."""

import pytest

from tests.fixtures import quantizable_networks


@pytest.mark.parametrize("number", range(4))
def test_a_random_network_is_quantized(number):
    quantizable_networks.quantize(number)
