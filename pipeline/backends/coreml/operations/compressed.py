"""Compressed weights and quantized activations.

The operations of iOS16 and iOS18 share their names; those of iOS18 take sizes from the tensors themselves, so what
only iOS16 has (`shape`, `axis`) tells them apart.
"""

from typing import TYPE_CHECKING

from pipeline.backends.coreml.values import KINDS
from pipeline.backends.coreml.weights import unpack

if TYPE_CHECKING:
    from torch import Tensor


def _along(values: "Tensor", axis: int | None, rank: int) -> "Tensor":
    """A vector along one axis; a single number as it is."""
    if values.dim() == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _in_blocks(values: "Tensor", shape: "list[int]") -> "Tensor":
    """One number a block, repeated to a tensor's own shape."""
    for axis, size in enumerate(shape):
        values = values.repeat_interleave(size // values.shape[axis], axis)
    return values


def _affine_dequantize(quantized_data: "Tensor", zero_point: "Tensor", scale: "Tensor", axis: int) -> "Tensor":
    scale, zero_point = (_along(one, axis, quantized_data.dim()) for one in (scale, zero_point))
    return (quantized_data.float() - zero_point.float()) * scale


def _blockwise_shift_scale(data: "Tensor", scale: "Tensor", offset: "Tensor | None" = None) -> "Tensor":
    shifted = data.float() if offset is None else data.float() - _in_blocks(offset, data.shape).float()
    return shifted * _in_blocks(scale, data.shape)


def _lut_to_dense(
    indices: "Tensor", lut: "Tensor", shape: list[int] | None = None, vector_axis: int | None = None
) -> "Tensor":
    import math

    import torch

    if shape is not None:  # iOS16: one table, and the indices packed into bytes
        bits, count = int(math.log2(lut.shape[0])), math.prod(shape)
        kind = KINDS[f"uint{bits}"]
        places = unpack(indices.numpy()[: -(-count * bits // 8)], kind, count)
        return lut[torch.from_numpy(places).long()].reshape(shape)
    *groups, entries, width = lut.shape
    table = torch.arange(math.prod(groups)).reshape(groups)
    places = _in_blocks(table, indices.shape) * entries + indices.long()
    vectors = lut.reshape(-1, width)[places]  # (*indices' shape, width)
    if vector_axis is None:
        return vectors.squeeze(-1)
    axis = vector_axis % indices.dim()
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _sparse_to_dense(nonzero_data: "Tensor", mask: "Tensor", shape: list[int] | None = None) -> "Tensor":
    import math

    import torch

    if shape is not None:  # iOS16: the mask is packed into bytes
        count = math.prod(shape)
        bits = unpack(mask.numpy()[: -(-count // 8)], KINDS["uint1"], count)
        mask = torch.from_numpy(bits).reshape(shape)
    dense = nonzero_data.new_zeros(mask.shape)
    dense[mask.bool()] = nonzero_data
    return dense


def _lut_to_sparse(
    indices_mask: "Tensor", indices_nonzero_data: "Tensor", lut: "Tensor", vector_axis: int | None = None
) -> "tuple[Tensor, Tensor]":
    dense = _lut_to_dense(_sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    mask = indices_mask if vector_axis is None else indices_mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask.bool()]


def _sparse_blockwise_shift_scale(
    data_mask: "Tensor", nonzero_data: "Tensor", scale: "Tensor", offset: "Tensor | None" = None
) -> "tuple[Tensor, Tensor]":
    dense = _blockwise_shift_scale(_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


def _constexpr_cast(source_val: "Tensor", output_dtype: str) -> "Tensor":
    if output_dtype != "fp32":
        raise NotImplementedError(f"output_dtype {output_dtype}")
    return source_val


def _quantize(
    input: "Tensor",
    scale: "Tensor",
    output_dtype: str,
    zero_point: "Tensor | None" = None,
    axis: int | None = None,
) -> "Tensor":
    import torch

    kind = {"int8": torch.int8, "uint8": torch.uint8}[output_dtype]
    whole = (input / _along(scale, axis, input.dim())).round()
    whole = whole if zero_point is None else whole + _along(zero_point, axis, input.dim())
    return whole.clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def _dequantize(
    input: "Tensor", scale: "Tensor", zero_point: "Tensor | None" = None, axis: int | None = None
) -> "Tensor":
    whole = input.float()
    whole = whole if zero_point is None else whole - _along(zero_point, axis, input.dim())
    return whole * _along(scale, axis, input.dim())


OPERATIONS = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _constexpr_cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
