"""Losses, scores and agreements of each task, held against what can be reckoned by hand or by other libraries."""

import pytest
import torch

from pipeline import tasks
from pipeline.artifacts import metric
from pipeline.tasks.base import IGNORED

LABELS = ("background", "cat", "dog")
SIZE = (8, 12)


def named(name: str, labels: tuple[str, ...] = LABELS):
    return tasks.named(name, labels, SIZE)


def maps(classes: torch.Tensor, sure: float = 5.0) -> list[torch.Tensor]:
    """Logits whose largest is that of some classes (n, h, w)."""
    return [sure * torch.nn.functional.one_hot(classes, len(LABELS)).movedim(-1, 1).float()]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, len(LABELS), shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", tasks.NAMES)
def test_each_keeps_the_contract(name):
    task = named(name)
    assert task.name == name and task.targets in ("label", "mask", "boxes", "picture") and task.metric
    for ability in ("require", "loss", "score", "agreement", "decode", "draw"):
        assert callable(getattr(task, ability))


def test_mean_iou_is_that_of_the_counts():
    wanted, given = drawn(3, *SIZE), drawn(3, *SIZE, seed=1)
    ious = [
        float(((wanted == one) & (given == one)).sum() / ((wanted == one) | (given == one)).sum()) for one in range(3)
    ]
    assert named("segmentation").score(maps(given), wanted) == pytest.approx(sum(ious) / 3)
    assert named("segmentation").score(maps(wanted), wanted) == 1


def test_a_class_that_is_nowhere_and_pixels_without_a_class_do_not_count():
    wanted = drawn(2, *SIZE).clamp(max=1)
    told = wanted.clone()
    told[:, :, :4] = IGNORED
    given = wanted.clone()
    given[:, :, :4] = 2
    task = named("segmentation")
    assert task.score(maps(given), told) == 1
    assert task.score(maps(given), wanted) < 0.7
    losses = [float(task.loss(maps(given), one)) for one in (told, wanted)]
    assert losses[0] < 0.1 < losses[1]


@pytest.mark.parametrize(("moved", "least"), [(0, 1.0), (1, 0.0)])
def test_a_map_moved_by_a_pixel_scores_less_and_agrees_less(moved, least):
    squares = torch.zeros(1, 8, 12, dtype=torch.int64)
    squares[:, 2:5, 3:8] = 1
    shifted = maps(squares.roll(moved, -1))
    task = named("segmentation")
    assert (task.score(shifted, squares) == 1) is (moved == 0)
    assert (task.agreement(shifted, maps(squares)) == 1) is (moved == 0)


def test_a_smaller_map_is_enlarged():
    coarse = drawn(1, 4, 6)
    assert named("segmentation").score(maps(coarse), coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)) > 0.6


def test_psnr_is_that_of_its_formula_and_cut_to_the_range():
    wanted = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    given = wanted + 0.01
    error = (given.clamp(0, 1) - wanted).square().mean((1, 2, 3))
    assert named("restoration").score([given], wanted) == pytest.approx(float((-10 * error.log10()).mean()), abs=1e-3)
    assert named("restoration").score([wanted + (wanted == 1)], wanted) == 100
    assert named("restoration").agreement([wanted], [wanted]) == 1
    assert named("restoration").agreement([wanted + 0.1], [wanted]) == pytest.approx(20 / 40, abs=0.02)


def test_recall_is_that_of_the_nearest_other():
    from sklearn.neighbors import NearestNeighbors

    vectors = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    labels = drawn(300)
    _, nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors).kneighbors(vectors)
    wanted = float((labels[torch.from_numpy(nearest[:, 1])] == labels).double().mean())
    assert named("embedding").score([vectors], labels) == pytest.approx(wanted, abs=1 / 300)
    assert named("embedding").agreement([vectors], [3 * vectors]) == pytest.approx(1)
    assert named("embedding").agreement([vectors], [-vectors]) == 0


def test_the_contrastive_loss_is_less_where_kinds_are_apart():
    labels = torch.tensor([0, 0, 1, 1])
    apart, mixed = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    task = named("embedding")
    assert float(task.loss([apart], labels)) < 0.01 < 5 < float(task.loss([mixed], labels))
    alone = torch.tensor([0, 1, 2, 3])  # none has another of its class
    assert float(task.loss([apart], alone)) == 0


@pytest.mark.parametrize(
    ("name", "outputs", "said"),
    [
        ("segmentation", [torch.zeros(2, 3)], r"gives \(2, 3\) for two images, and must give one map of logits"),
        ("segmentation", [torch.zeros(2, 5, 8, 12)], "tells 5 classes apart, and the data set has 3"),
        ("restoration", [torch.zeros(2, 3, 8, 12)], "8 x 12 pixels, and by data.scale 2 it must be 16 x 24"),
        ("restoration", [torch.zeros(2, 3, 16, 24)] * 2, "must give one picture"),
        ("embedding", [torch.zeros(2, 3, 8, 12)], "must give one vector an image"),
        ("classification", [torch.zeros(2, 4)], "tells 4 classes apart"),
    ],
)
def test_outputs_of_another_task_are_told(name, outputs, said):
    with pytest.raises(ValueError, match=said):
        named(name).require(outputs, SIZE, 2)


@pytest.mark.parametrize("name", ["classification", "segmentation", "restoration", "embedding"])
def test_what_is_decoded_is_drawn_on_a_picture_of_its_size(name):
    given = {
        "classification": [torch.randn(2, 3)],
        "segmentation": maps(drawn(2, 32, 48)),
        "restoration": [torch.rand(2, 3, 32, 48)],
        "embedding": [torch.randn(2, 4)],
    }[name]
    picture = torch.zeros(3, 32, 48, dtype=torch.uint8)
    for decoded in named(name).decode(given):
        shown = named(name).draw(picture, decoded)
        assert shown.dtype == torch.uint8 and shown.shape == picture.shape
        assert bool(shown.any()) is (name != "embedding")


@pytest.mark.parametrize(
    ("name", "value", "shown", "allowed"),
    [
        ("top-1", 0.98333, "98.33%", 0.01),
        ("PSNR [dB]", 31.267, "31.27 dB", 0.3),
        ("loss [nats]", -2.0, "-2.00 nats", 0.02),
    ],
)
def test_values_are_written_in_their_unit(name, value, shown, allowed):
    assert metric.shown(value, name) == shown
    assert metric.allowed_drop(None, name, value) == allowed and metric.allowed_drop(0.0, name, value) == 0
