"""Evidence: documents that name what they speak of by content, and the one comparison that every reader makes.

``subjects`` of such a document has the sha256 of everything that it speaks of, by name: ``checkpoint``, ``split``,
``fused``, ``quantized``; the documents ``verify``, ``report`` (quantize.json), ``manifest``, ``check``, ``bench`` and
``reference``; and each exported file by its own name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.artifacts import documents
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.documents import Document
from pipeline.errors import InputError


class Evidence(Document, Protocol):
    """A document that names what it speaks of."""

    @property
    def subjects(self) -> Mapping[str, str]:
        """Sha256 of everything that it speaks of, by name."""


_E = TypeVar("_E", bound=Evidence)


def read(kind: type[_E], path: Path, inputs: Inputs, *names: str) -> _E:
    """Read a document that must speak of these very files.

    Args:
        kind: its dataclass.
        path: of the document.
        inputs: what is there.
        names: of the inputs that it must speak of; what is not given is passed over.

    Raises:
        InputError: as `documents.read`; it speaks of other files, or does not speak of one.
    """
    document = documents.read(kind, path)
    require(document, path, inputs, *names)
    return document


def require(document: Evidence, path: Path, inputs: Inputs, *names: str) -> None:
    """Refuse a document that speaks of other files than these; see `read`."""
    for name in names:
        if inputs.paths[name]:
            require_same(document, path, name, inputs.sha256[name], inputs.paths[name])


def require_same(document: Evidence, path: Path, name: str, sha256: str | None, file: Path | None = None) -> None:
    """The comparison: refuse a document that speaks of another content under a name, or of none.

    Args:
        document: as it was read.
        path: of it, for messages.
        name: of the subject.
        sha256: that the subject must have; None where there is none such.
        file: the subject itself, for messages.

    Raises:
        InputError: it is another.
    """
    told = document.subjects.get(name)
    if sha256 is not None and told == sha256:
        return
    subject = file.name if file else name
    what = f"is of another {subject}" if told else f"does not speak of {subject}"
    digests = f"sha256 {(told or 'none')[:12]}, but {(sha256 or 'none')[:12]}{f' of {file}' if file else ''}"
    raise InputError(
        f"{path} {what} ({digests}), so it proves nothing here. Delete it and run again: the stage `{document.STAGE}` "
        "writes it."
    )
