"""What networks are for: `named` gives the task of a name. Each is a module here; `base` is their contract."""

from pipeline.tasks.base import Task

NAMES = ("classification", "segmentation", "detection", "restoration", "embedding")


def named(name: str, labels: tuple[str, ...], size: tuple[int, int], label_smoothing: float = 0.0) -> Task:
    """A task.

    Args:
        name: one of `NAMES`, or `module.path:name` of the user's own.
        labels: the names of its classes; none of restoration and embedding.
        size: height and width of the network's input, pixels.
        label_smoothing: of classification's loss.

    Raises:
        InputError: the user's own cannot be loaded.
    """
    if ":" in name:
        from pipeline.tasks import own

        return own.load(name, labels, size)
    if name == "classification":
        from pipeline.tasks.classification import Classification

        return Classification(labels, label_smoothing)
    if name == "segmentation":
        from pipeline.tasks.segmentation import Segmentation

        return Segmentation(labels)
    if name == "detection":
        from pipeline.tasks.detection import Detection

        return Detection(labels, size)
    if name == "restoration":
        from pipeline.tasks.restoration import Restoration

        return Restoration()
    from pipeline.tasks.embedding import Embedding

    return Embedding()
