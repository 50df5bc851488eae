"""Where a network is trained: on which device, and by how many processes, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Team:
    """The processes that train one network together, as torchrun numbers them; one without torchrun."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def own_team() -> Team:
    """What torchrun tells this process; a team of one without it."""
    names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    return Team(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})


@contextmanager
def joined(team: Team, device: str) -> Iterator[None]:
    """Connect the processes that torchrun started; nothing to do for one alone."""
    if team.world == 1:
        yield
        return
    import torch

    backend = "nccl" if device_of(device, team).type == "cuda" else "gloo"
    # rank 0 may wait in the store's lock for as long as another run trains the same network
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    yield
    torch.distributed.destroy_process_group()


def tell_all(team: Team, word: str | None) -> str | None:
    """Rank 0's word, on every rank."""
    if team.world == 1:
        return word
    import torch

    words = [word]
    torch.distributed.broadcast_object_list(words, src=0)
    return words[0]


def device_of(wanted: str, team: Team) -> "torch.device":
    """The device of `training.device`; InputError where there is none such."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training.device: cuda, but torch sees no GPU here. Install the driver and a torch with CUDA, "
            "or set `device: auto`, which takes a GPU where there is one."
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums in the same order, each time
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.cuda.set_device(team.local_rank)
    return torch.device("cuda", team.local_rank)


def for_device(model: "nn.Module", device: "torch.device") -> "nn.Module":
    """Move a network to a device, its weights in channels_last order.

    On the CPU, oneDNN 3.12 writes past its memory in the backward pass of a strided 1x1 convolution of few
    channels in that order (uxlfoundation/oneDNN#6035): it crashes, hangs, or gives wrong gradients. The
    first block of a RepVGG has such a convolution, so those run in the common order.
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
    """Whether the device multiplies bfloat16 itself; where it is emulated it only costs time."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def distributed(model: "nn.Module", team: Team, device: "torch.device") -> "nn.Module":
    """The network with gradients averaged over the processes, and on GPUs batch statistics too.

    A batch norm of a class of its own, such as timm's with the activation inside, would lose what it adds if
    it were exchanged for torch's, so it keeps to the statistics of each process's share.
    """
    from torch import nn

    if team.world == 1:
        return model
    if device.type == "cuda":
        model = synchronised(model)
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def synchronised(model: "nn.Module") -> "nn.Module":
    """The network, in place, with torch's own batch norms exchanged for ones that see all processes' batches."""
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


def summed(team: Team, device: "torch.device", *values: float) -> list[float]:
    """Each value summed over the processes."""
    if team.world == 1:
        return list(values)
    import torch

    totals = torch.tensor(values, device=device, dtype=torch.float64)
    torch.distributed.all_reduce(totals)
    return totals.tolist()
