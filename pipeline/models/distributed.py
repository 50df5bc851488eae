"""Distributed training: the device, and the processes that torchrun starts."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

_T = TypeVar("_T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network together, as torchrun numbers them; a single one without torchrun."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def process_group() -> ProcessGroup:
    """The process group by torchrun's environment variables; a single process without them."""
    names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    return ProcessGroup(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})


@contextmanager
def connected(group: ProcessGroup, device: str) -> Iterator[None]:
    """Connect the processes of a group; a single process needs no connection."""
    if group.world_size == 1:
        yield
        return
    import torch

    backend = "nccl" if device_of(device, group).type == "cuda" else "gloo"
    # rank 0 may wait in the store's lock for as long as another run trains the same network
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    yield
    torch.distributed.destroy_process_group()


def broadcast(group: ProcessGroup, value: _T) -> _T:
    """Rank 0's value, on every rank: of Python's own types, with nothing shared but the connection."""
    if group.world_size == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered(group: ProcessGroup, value: _T) -> list[_T]:
    """The value of each rank, on every rank, in order."""
    if group.world_size == 1:
        return [value]
    import torch

    values: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def require_same(group: ProcessGroup, parts: Mapping[str, str]) -> None:
    """InputError on every rank where one trains something else than rank 0, such as by another file on its machine.

    Args:
        parts: what is trained, by name in messages: any text, such as a digest.
    """
    first, *others = gathered(group, dict(parts))
    for rank, other in enumerate(others, start=1):
        if differing := [name for name in first if other.get(name) != first[name]]:
            raise InputError(
                f"the processes do not train the same: rank {rank} has another {' and another '.join(differing)} than "
                "rank 0. Nothing was trained. Copy the project and its split to all machines, install the same "
                "packages there, and start every torchrun with the same options."
            )


def device_of(wanted: str, group: ProcessGroup) -> "torch.device":
    """The device of `training.device`. InputError if it is not available."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training.device: cuda, but torch sees no GPU here. Install the driver and a torch with CUDA, "
            "or set `device: auto`, which takes a GPU where there is one."
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic sums
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.cuda.set_device(group.local_rank)
    return torch.device("cuda", group.local_rank)


def for_device(model: "nn.Module", device: "torch.device") -> "nn.Module":
    """Move a network to a device, its weights in channels_last order.

    On the CPU, oneDNN 3.12 writes out of bounds in the backward pass of a strided 1x1 convolution with few channels in
    that order (uxlfoundation/oneDNN#6035): it crashes, hangs, or gives wrong gradients. The first block of a RepVGG has
    such a convolution, so these use the default order.
    """
    import torch
    from torch import nn

    model = model.to(device, memory_format=torch.channels_last)
    for module in model.modules() if device.type == "cpu" else ():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and max(module.stride) > 1:
            if module.in_channels // module.groups >= 16:  # a vector of AVX-512; 8 for AVX2
                continue
            module.weight.data = torch.empty(module.weight.shape).copy_(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
            module.register_forward_hook(lambda _, __, out: out.contiguous(memory_format=torch.channels_last))
    return model


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the device computes in bfloat16 natively; emulation would only be slower."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def distributed(model: "nn.Module", group: ProcessGroup, device: "torch.device") -> "nn.Module":
    """The network with gradients averaged over the processes, and on GPUs batch statistics too.

    Batch norms of other classes, such as timm's with an activation inside, cannot be replaced by torch's; they use the
    statistics of their own process.
    """
    from torch import nn

    if group.world_size == 1:
        return model
    if device.type == "cuda":
        model = synchronised(model)
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def synchronised(model: "nn.Module") -> "nn.Module":
    """The network, in place, with torch's batch norms replaced by ones that use the batches of all processes."""
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if type(model) in kinds:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    plain = [(name, one) for name, one in model.named_modules(remove_duplicate=False) if type(one) in kinds]
    made = {one: nn.SyncBatchNorm.convert_sync_batchnorm(one) for _, one in plain}
    for name, one in plain:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made[one])
    return model


def summed_over_processes(group: ProcessGroup, device: "torch.device", *values: float) -> list[float]:
    """Each value summed over the processes."""
    if group.world_size == 1:
        return list(values)
    import torch

    totals = torch.tensor(values, device=device, dtype=torch.float64)
    torch.distributed.all_reduce(totals)
    return totals.tolist()
