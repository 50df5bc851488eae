"""What a file is that was given for a checkpoint, by its first bytes; without torch, and nothing of it is run."""

import re
import zipfile
from pathlib import Path

from pipeline.errors import InputError, quoted

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".ckpt", ".tar", ".bin")

_HEAD = 4096  # bytes
STATE_DICT = "`torch.save(model.state_dict(), 'weights.pth')`"
_UNPACK = "Unpack it, and name the checkpoint that is in it."
_OF_TORCH = f"a file of torch.save, and no {SAFETENSORS} file as its name says. Rename it to end in .pth."

# of files that are neither zip nor safetensors; the first pattern that matches counts
_KINDS = (
    (
        rb"version https?://[^\n]*git-(?:lfs|media)",
        "a Git LFS pointer, which stands for a file that was not fetched. Fetch it: `git lfs pull`, in the repository "
        "that it is of, or download the file itself.",
    ),
    (
        rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml[^<]*<(?:!doctype|html|error))",
        "a web page: the download led to a page of an error, a login or a preview. Download the file itself again.",
    ),
    (
        rb"\x08[\x01-\x40][\x12\x1a\x22\x28\x32\x3a\x42]",
        "an ONNX file, whose weights are no state dict. Bring that of the network which it was exported from: "
        f"{STATE_DICT}.",
    ),
    (rb"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes it. Bring a network of PyTorch: {STATE_DICT}."),
    (rb"\x1f\x8b", f"compressed with gzip. {_UNPACK}"),
    (rb"(?s:.{257})ustar", f"a tar archive. {_UNPACK}"),
)  # fmt: skip


def require_checkpoint(path: Path) -> None:
    """Refuse a file that is something else than a checkpoint, or has the ending of another kind of checkpoint.

    What has the first bytes of no known kind passes: whoever reads it says what is wrong.

    Raises:
        InputError: with what the file is, and what to bring instead.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the name of the checkpoint.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise InputError(f"{path} is empty, so a copy or a download of it failed. Get it again.")
    kind = _zip_kind(path) if head.startswith(b"PK\x03\x04") else _other_kind(head, path)
    if kind is not None:
        raise InputError(f"{path} is {kind}")
    if path.suffix not in (SAFETENSORS, *PICKLES):
        raise InputError(f"{path} is neither {SAFETENSORS} nor {', '.join(PICKLES)}. Save it as safetensors.")


def _zip_kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
    inner = {name.partition("/")[2] or name for name in names}
    if inner & {"archive_format", "serialized_exported_program.json", "models/model.json"}:
        return (
            "a program of torch.export (.pt2), which is no state dict. Bring that of the network which it was exported "
            f"from: {STATE_DICT}. (`repnets convert` writes the weights of a fused.pt2 of this project.)"
        )
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return (
            "a TorchScript archive, which holds code beside its weights. Save the weights alone where you trust the "
            "file: `torch.save(torch.jit.load(file).state_dict(), 'weights.pth')`."
        )
    if "data.pkl" not in inner:
        first = ", ".join(f"`{quoted(name[:60])}`" for name in names[:3])
        return f"a zip archive of other things ({first or 'it is empty'}). {_UNPACK}"
    return _OF_TORCH if path.suffix == SAFETENSORS else None


def _other_kind(head: bytes, path: Path) -> str | None:
    # first, since the length of a safetensors file's table may look like the first bytes of anything else
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return None if path.suffix == SAFETENSORS else f"a safetensors file. Rename it to end in {SAFETENSORS}."
    if path.suffix == SAFETENSORS and re.match(rb"\x80[\x02-\x05]", head):
        return _OF_TORCH
    return next((kind for pattern, kind in _KINDS if re.match(pattern, head)), None)
