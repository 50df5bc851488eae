"""A task of the user's own, `module.path:name`: what it raises is told with the line of the user's code."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pipeline.artifacts import own_code
from pipeline.errors import InputError
from pipeline.tasks.base import Targets, Task

if TYPE_CHECKING:
    from torch import Tensor

_ABILITIES = ("require", "loss", "score", "agreement", "decode", "draw")


@dataclass(frozen=True)
class OwnTask:
    """The user's task, behind the contract."""

    name: str
    task: Task

    @property
    def metric(self) -> str:
        """As the task has it."""
        return self.task.metric

    @property
    def targets(self) -> Targets:
        """As the task has it."""
        return self.task.targets

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """A ValueError of the task's is its word on the network, and goes on as it is."""

        def of_network() -> ValueError | None:
            try:
                self.task.require(outputs, size, scale)
            except ValueError as error:
                return error
            return None

        if (error := self._made("require", of_network)) is not None:
            raise error

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """As the task has it."""
        return self._made("loss", lambda: self.task.loss(outputs, targets))

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """As the task has it."""
        return self._made("score", lambda: float(self.task.score(outputs, targets)))

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """As the task has it."""
        return self._made("agreement", lambda: float(self.task.agreement(outputs, others)))

    def decode(self, outputs: "Sequence[Tensor]") -> list[Any]:
        """As the task has it."""
        return self._made("decode", lambda: self.task.decode(outputs))

    def draw(self, picture: "Tensor", decoded: Any) -> "Tensor":
        """As the task has it."""
        return self._made("draw", lambda: self.task.draw(picture, decoded))

    def _made(self, ability: str, call: Callable[[], Any]) -> Any:
        return own_code.made(self.name, call, f"failed in `{ability}`")


def load(reference: str, labels: tuple[str, ...], size: tuple[int, int]) -> OwnTask:
    """A task of the user's own.

    Args:
        reference: `module.path:name` of a class or function, which is given `labels` and `size` if it has such
            arguments.
        labels, size: as for `tasks.named`.

    Raises:
        InputError: it cannot be imported or called, or what it gives is no task; names the line of the user's code.
    """
    own_code.require(reference, "data.task", "mytasks:Leaves")
    make = own_code.load(reference)
    if not callable(make):
        raise InputError(f"`{reference}` is a {type(make).__name__}. Name the class of the task, or a function of it.")
    taken = inspect.signature(make).parameters
    given = {key: value for key, value in {"labels": labels, "size": size}.items() if key in taken}
    task = own_code.made(reference, lambda: make(**given))
    if missing := [one for one in ("metric", "targets", *_ABILITIES) if getattr(task, one, None) is None]:
        raise InputError(f"`{reference}` is no task: it has no `{missing[0]}`. docs/tasks.md has an example of one.")
    if task.targets not in get_args(Targets):
        raise InputError(
            f"`{reference}`: `targets` is {task.targets!r}, and must be of {', '.join(get_args(Targets))}."
        )
    return OwnTask(reference, task)
