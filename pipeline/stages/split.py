"""Read the data set, check it, and fix once and for all which images are held out for validation.

    python -m pipeline split --output artifacts/split.json

The split depends on the images and on data.split_seed alone. A data set with a test part of its own
(fashion_mnist, cifar10, cifar100, an image folder with val/, valid/, test/ or the like) keeps it; of the others,
data.val_fraction of each class is held out. Pictures without labels are parted likewise; of `none` some are made by a
seed, for validation alone. The validation images prove every later stage, so they are never augmented.

split.json holds the sha256 of everything that was read. For an image folder each run of this stage reads
every image once to know whether anything changed, at the speed of the disk, and decodes every image once
if so; all broken ones are named at once. A folder of 10,000 photographs of 100 kB takes a few seconds and about a
minute.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline import tasks
from pipeline.artifacts import digests, own_code, store
from pipeline.config.stages import SplitSettings
from pipeline.data import annotated_folder, class_order, datasets, image_file, image_folder, own_data, splits
from pipeline.data.annotated_folder import AnnotatedTree, require_alike
from pipeline.errors import InputError, shown

_R = TypeVar("_R")
_NAMED = 10  # broken images that a message names


def run(settings: SplitSettings, *, output: Path) -> None:
    """Fix the split of a data set.

    Args:
        settings: which data set, and how much of it is held out.
        output: where split.json goes.

    Raises:
        InputError: the data set is missing, or an image folder is empty, has one class, or holds an image
            that cannot be decoded; the files are named.
    """
    beside: dict[str, str] = {}
    if settings.name in datasets.OF_FILES:
        root = Path(settings.root or "").expanduser()
        tree = _tree(settings, root)
        if isinstance(tree, AnnotatedTree):
            digested = _of_each(_digest, [root / name for name in tree.beside], "reading what is known of")
            beside = dict(zip(tree.beside, digested, strict=True))
        found = _of_each(_digest, [root / name for name in tree.images], "reading")
        sources = dict(zip(tree.images, found, strict=True))
    elif datasets.is_own(settings.name):
        tree, sources = None, _sources_of_own(settings)
    else:
        tree = None
        sources = {name: digests.digest(path) for name, path in splits.files_of(settings.name, settings.root).items()}

    def build(outputs: dict[str, Path], _scratch: Path) -> None:
        if datasets.is_own(settings.name):
            made = _of_own(settings, sources)
        elif tree is None:
            made = _of_memory(settings, sources)
        elif isinstance(tree, AnnotatedTree):
            made = _of_annotated(settings, tree, sources, beside)
        else:
            made = _of_folder(settings, tree, sources)
        splits.write_split(outputs["split"], made)

    store.cached(
        "split",
        settings={
            **settings.model_dump(),
            "sources": sources,
            "beside": beside,
            "classes": tree and tree.classes,
            "code": _code(settings),
        },
        inputs={},
        outputs={"split": output},
        code=("pipeline.stages.split",),
        packages=("numpy", "torchvision", "pillow"),
        build=build,
    )
    _tell(output)


def _own_items(settings: SplitSettings) -> dict[str, tuple[own_data.OwnItem, ...]]:
    use = _use(settings)
    return own_data.items(settings.name, use.kind if use else None, len(_named(settings)))


def _sources_of_own(settings: SplitSettings) -> dict[str, str]:
    """One by one, since the user's code may not be made for threads; the first that fails ends it."""
    from tqdm import tqdm

    every = [item for part in _own_items(settings).values() for item in part]
    print(f"split: reading {len(every)} images of {settings.name}", flush=True)
    return {item.source: item.digest() for item in tqdm(every, "reading", unit=" images", disable=None, leave=False)}


def _of_own(settings: SplitSettings, sources: dict[str, str]) -> splits.Split:
    parts = {part: [item.number for item in items] for part, items in _own_items(settings).items()}
    return splits.new_split(settings.name, settings.root, _named(settings), sources, (), parts, _use(settings))


def _tree(settings: SplitSettings, root: Path) -> image_folder.Tree | AnnotatedTree:
    if settings.name in datasets.ANNOTATED:
        return annotated_folder.scan(settings.name, root, settings.classes)
    return (
        image_folder.scan(root, settings.classes) if settings.name == datasets.FOLDER else image_folder.pictures(root)
    )


def _of_annotated(
    settings: SplitSettings, tree: AnnotatedTree, sources: dict[str, str], beside: dict[str, str]
) -> splits.Split:
    root = Path(settings.root or "").expanduser()
    if settings.name == datasets.MASKS:
        other = dict(zip((root / one for one in tree.images), (root / one for one in tree.beside), strict=True))
        _of_each(lambda path: require_alike(path, other[path], len(tree.classes)), list(other), "decoding masks and")
    else:
        also = tree.beside if settings.name == datasets.PAIRS else ()
        _of_each(image_file.inspect, [root / name for name in (*tree.images, *also)], "decoding")
    parts = _of_pictures(settings, tree.images)
    if settings.name == datasets.COCO:
        boxes = annotated_folder.boxes_of(root, tree.images, *beside.values())
        if not bool((boxes[parts["val"], :, 0] >= 0).any()):
            raise InputError(
                f"data.root: none of the {len(parts['val'])} validation images has a box in "
                f"{annotated_folder.ANNOTATIONS}, so nothing could be judged. Annotate more, or set data.split_seed."
            )
    for note in tree.notes:
        print(f"split: {note}", flush=True)
    return splits.new_split(settings.name, settings.root, tree.classes, sources, (), parts, _use(settings), beside)


def _of_memory(settings: SplitSettings, sources: dict[str, str]) -> splits.Split:
    files = splits.files_of(settings.name, settings.root)
    use = _use(settings)
    images = splits.read_images(settings.name, files, use.kind if use else "label")
    count, classes = len(images.pixels), images.classes or _named(settings)
    if images.own_val < count:
        parts = {"train": range(images.own_val), "val": range(images.own_val, count)}
    else:
        parts = _held_out(settings, classes, images.targets.tolist(), [str(number) for number in range(count)])
    return splits.new_split(settings.name, settings.root, classes, sources, [], parts, use)


def _use(settings: SplitSettings) -> splits.Use | None:
    if not settings.used_for:
        return None
    kind = tasks.named(settings.used_for, (), (1, 1)).targets
    kinds = datasets.KINDS.get(settings.name, ("label",))
    if kind not in kinds and not datasets.is_own(settings.name):
        raise InputError(
            f"data.task: `{settings.used_for}` learns from a {kind} for each image, and {settings.name} has "
            f"{' or '.join(kinds)}. Take another data set, or another task."
        )
    return splits.Use(settings.used_for, settings.scale, kind, _code(settings))


def _code(settings: SplitSettings) -> str:
    """Digest of the code of a task of the user's own: the split has it, and so all that depends on the task."""
    return digests.code_digest(*own_code.modules(settings.used_for))


def _of_folder(settings: SplitSettings, tree: image_folder.Tree, sources: dict[str, str]) -> splits.Split:
    root = Path(settings.root or "").expanduser()
    seen = _of_each(image_file.inspect, [root / name for name in tree.images], "decoding")
    classes = tree.classes or _named(settings)
    if not tree.labels:
        parts = _of_pictures(settings, tree.images)
    elif tree.own_val is None:
        parts = _held_out(settings, classes, tree.labels, tree.images)
    else:
        parts = {
            part: [number for number, held in enumerate(tree.own_val) if held is (part == "val")]
            for part in ("train", "val")
        }
        if not parts["val"]:
            raise InputError(f"data.root: the validation part of {root} holds no image. Fill it or delete it.")
    notes = [*tree.notes]
    if tree.other:
        notes.append(f"{len(tree.other)} files are not images and are not used, e.g. {shown(root / tree.other[0])}")
    if deep := sum(one.is_deep for one in seen):
        notes.append(f"{deep} images have more than 8 bits a channel: integers are divided by 257, floats times 255")
    if rotated := sum(one.is_rotated for one in seen):
        notes.append(f"{rotated} images have an EXIF rotation, which is not applied, here and on devices")
    for note in notes:
        print(f"split: {note}", flush=True)
    return splits.new_split(settings.name, settings.root, classes, sources, tree.labels, parts, _use(settings))


def _named(settings: SplitSettings) -> Sequence[str]:
    """The classes of images without labels; none of a network that is no classifier."""
    return () if settings.classes == "sorted" else class_order.named(settings.classes)


def _of_pictures(settings: SplitSettings, names: Sequence[str]) -> dict[str, list[int]]:
    """Those for the ranges of int8, and those that files are held against, by the hash of a picture's name."""
    order = sorted(range(len(names)), key=lambda number: _key(settings, names[number]))
    held = set(order[: max(1, round(settings.val_fraction * len(names)))])
    numbers = range(len(names))
    return {"train": [n for n in numbers if n not in held], "val": [n for n in numbers if n in held]}


def _key(settings: SplitSettings, name: str) -> bytes:
    return hashlib.sha256(f"{settings.split_seed} {name}".encode()).digest()


def _digest(path: Path) -> str:
    return hashlib.sha256(image_file.content_of(path)).hexdigest()


def _held_out(
    settings: SplitSettings, classes: Sequence[str], labels: Sequence[int], names: Sequence[str]
) -> dict[str, list[int]]:
    """The same fraction of every class, by the hash of an image's name: new ones move no old ones."""
    held = set()
    for label, name in enumerate(classes):
        members = [number for number, one in enumerate(labels) if one == label]
        if len(members) < 2:
            raise InputError(
                f"class `{name}` has {len(members)} image, so none can be held out for validation. Add "
                "images to it, or leave the class out."
            )
        members.sort(key=lambda number: _key(settings, names[number]))
        held.update(members[: min(max(1, round(settings.val_fraction * len(members))), len(members) - 1)])
    numbers = range(len(labels))
    return {"train": [n for n in numbers if n not in held], "val": [n for n in numbers if n in held]}


def _of_each(work: Callable[[Path], _R], images: Sequence[Path], doing: str) -> list[_R]:
    """Do something to every image, several at a time; a bar on a terminal, a line in a log.

    Raises:
        InputError: of all images that cannot be used; the message has the first ones.
    """
    from tqdm import tqdm

    def attempt(image: Path) -> _R | InputError:
        try:
            return work(image)
        except InputError as error:
            return error

    if not sys.stderr.isatty():
        print(f"split: {doing} {len(images)} images", flush=True)
    threads = ThreadPoolExecutor()
    try:
        done = threads.map(attempt, images)
        found = list(tqdm(done, total=len(images), desc=doing, unit=" images", disable=None))
    finally:
        threads.shutdown(cancel_futures=True)
    broken = [str(one) for one in found if isinstance(one, InputError)]
    if broken:
        more = f" And {len(broken) - _NAMED} more." if len(broken) > _NAMED else ""
        raise InputError(f"{' '.join(broken[:_NAMED])}{more}")
    return found


def _tell(output: Path) -> None:
    split = splits.open_split(output)
    sizes: dict[str, Any] = {part: split.size(part) for part in ("train", "val")}
    if split.has_labels:
        use = f"{sizes['train']} images to train on, {sizes['val']} held out"
    else:
        use = f"{sizes['train']} pictures for the ranges of int8, {sizes['val']} to hold files against, without labels"
    classes = f"{len(split.classes)} classes, " if split.classes else ""
    task = f", for {split.use.task}" if split.use.task and not split.is_of_classifier else ""
    print(f"split: {split.name}{task}, {classes}{use}")
    if split.labels:
        train, val = ({list(split.sources.values())[n] for n in split.parts[part]} for part in ("train", "val"))
        if twice := len(train & val):
            print(
                f"warning: {twice} validation images are also in the train part, byte by byte; accuracy "
                "will look better than it is. Delete the copies.",
                file=sys.stderr,
            )
