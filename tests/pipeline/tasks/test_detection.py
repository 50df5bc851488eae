"""Detection: what is decoded, scored, compared and learnt, on scenes of several digits."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import repnets
from pipeline.tasks.detection import Detection
from repnets.outputs import named

SIDE, STRIDES = 64, (4, 8, 16)
DIGITS = Detection(tuple("0123456789"), (SIDE, SIDE))
TWO = torch.tensor([[[3, 8, 12, 24, 32], [7, 38, 30, 62, 58]]], dtype=torch.float32)
NONE = torch.tensor([[[-1, 0, 0, 0, 0]] * 2], dtype=torch.float32)


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 64, 64) with one digit in each of the four quarters or none, and their boxes."""
    random, digits = np.random.default_rng(seed), load_digits()
    pictures, boxes = np.zeros((count, SIDE, SIDE), np.float32), np.full((count, 4, 5), -1, np.float32)
    for number in range(count):
        for quarter in range(4):
            if random.random() < 0.4:
                continue
            which, factor = random.integers(len(digits.images)), random.integers(2, 4)
            digit = np.kron(digits.images[which] / 16, np.ones((factor, factor)))
            top, left = (32 * part + random.integers(0, 33 - 8 * factor) for part in divmod(quarter, 2))
            pictures[number, top : top + 8 * factor, left : left + 8 * factor] = digit
            boxes[number, quarter] = digits.target[which], left, top, left + 8 * factor, top + 8 * factor
    return torch.from_numpy(pictures)[:, None].repeat(1, 3, 1, 1), torch.from_numpy(boxes)


def told(boxes: Tensor, sure: float = 6.0, strides: tuple[int, ...] = STRIDES) -> list[Tensor]:
    """What a network that knows these boxes gives: at each position inside of a box that box, on every level."""
    outputs = []
    for stride in strides:
        side = SIDE // stride
        middles = (torch.arange(side) + 0.5) * stride
        distances = torch.ones(len(boxes), 4, side, side)
        logits = torch.full((len(boxes), len(DIGITS.labels), side, side), -9.0)
        for image, own in enumerate(boxes):
            for label, *sides in own[own[:, 0] >= 0].tolist():
                x1, y1, x2, y2 = sides
                rows, columns = ((middles > low) & (middles < high) for low, high in ((y1, y2), (x1, x2)))
                inside = rows[:, None] & columns
                x, y = middles[None].expand(side, side), middles[:, None].expand(side, side)
                around = torch.stack([x - x1, y - y1, x2 - x, y2 - y]) / stride
                distances[image][:, inside] = around[:, inside]
                logits[image, int(label)][inside] = sure
        outputs += [distances.expm1().log(), logits]  # the inverse of the softplus
    return outputs


def shifted(boxes: Tensor, by: float) -> Tensor:
    moved = boxes.clone()
    moved[..., 1:] += by
    return moved


def relabelled(boxes: Tensor) -> Tensor:
    other = boxes.clone()
    other[..., 0] = torch.where(boxes[..., 0] >= 0, (boxes[..., 0] + 1) % 10, -1)
    return other


def test_decoding_gives_the_boxes_that_the_network_tells():
    found, nothing = DIGITS.decode(told(torch.cat([TWO, NONE])))
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == [3, 7]
    torch.testing.assert_close(found["boxes"][order], TWO[0, :, 1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["scores"], torch.full((2,), 6.0).sigmoid())
    assert (nothing["boxes"].shape, nothing["scores"].shape, nothing["labels"].shape) == ((0, 4), (0,), (0,))


def test_a_box_ends_at_the_border_of_the_picture():
    over = torch.tensor([[[1, -9, -5, 20, 30], [2, 40, 40, 80, 70]]], dtype=torch.float32)
    (found,) = DIGITS.decode(told(over))
    order = found["labels"].argsort()
    wanted = torch.tensor([[0.0, 0, 20, 30], [40, 40, 64, 64]])
    torch.testing.assert_close(found["boxes"][order], wanted, atol=1e-3, rtol=0)


def test_height_and_width_are_not_mixed_up():
    task = Detection(("a",), (32, 64))
    logits = torch.full((1, 1, 4, 8), -9.0)
    logits[0, 0, 1, 6] = 9
    distances = torch.ones(1, 4, 4, 8) * torch.tensor([1.0, 0.5, 1.5, 2]).view(1, 4, 1, 1)
    (found,) = task.decode([distances.expm1().log(), logits])
    torch.testing.assert_close(found["boxes"], torch.tensor([[52 - 8.0, 12 - 4, 52 + 12, 12 + 16]]))


def test_the_score_is_whole_for_the_truth_and_less_for_everything_else():
    _, boxes = scenes(12)
    truth = DIGITS.score(told(boxes), boxes)
    assert truth == pytest.approx(1, abs=1e-6)
    near, far = (DIGITS.score(told(shifted(boxes, by)), boxes) for by in (2.0, 6.0))
    assert truth > near > far
    assert DIGITS.score(told(relabelled(boxes)), boxes) < 0.1
    assert DIGITS.score(told(boxes.roll(1, 0)), boxes) < 0.3
    outputs = told(boxes)
    swapped = [outputs[place] for place in (4, 1, 2, 3, 0, 5)]
    with pytest.raises(ValueError, match="must follow each other"):
        DIGITS.require(swapped, (SIDE, SIDE), 1)


def test_a_score_without_any_box_is_refused_in_words():
    with pytest.raises(ValueError, match="no validation image has a box"):
        DIGITS.score(told(NONE), NONE)


def test_boxes_of_pictures_without_any_lower_the_score():
    both = torch.cat([NONE, TWO])
    assert DIGITS.score(told(both), both) == pytest.approx(1)
    assert DIGITS.score(told(torch.cat([TWO, TWO])), both) == pytest.approx(0.5)


def test_agreement_is_of_boxes_that_are_the_same():
    _, boxes = scenes(12)
    mine = told(boxes)
    assert DIGITS.agreement(mine, mine) == 1
    assert DIGITS.agreement(mine, told(shifted(boxes, 0.25))) == 1  # IoU of 16 x 16: 0.94
    assert DIGITS.agreement(mine, told(shifted(boxes, 2.0))) == 0
    assert DIGITS.agreement(mine, told(relabelled(boxes))) == 0
    assert DIGITS.agreement(mine, told(boxes, sure=-3.0)) == 0
    assert DIGITS.agreement(told(NONE), told(NONE)) == 1
    one = TWO.clone()
    one[0, 1] = NONE[0, 0]
    assert DIGITS.agreement(told(TWO), told(one)) == DIGITS.agreement(told(one), told(TWO)) == 0.5


def test_of_boxes_that_overlap_the_surest_stays():
    near = torch.tensor([[[3, 8, 12, 32, 36], [3, 8, 12, 34, 38]]], dtype=torch.float32)
    first, second = told(near[:, :1], sure=2.0, strides=(4,)), told(near[:, 1:], sure=3.0, strides=(8,))
    (found,) = DIGITS.decode(first + second)
    assert found["labels"].tolist() == [3]
    torch.testing.assert_close(found["boxes"], near[0, 1:, 1:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("boxes", [NONE, TWO, torch.cat([TWO, NONE])], ids=["none", "two", "both"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradient_are_finite(boxes, kind):
    torch.manual_seed(0)
    outputs = [torch.randn_like(one).to(kind).requires_grad_() for one in told(boxes)]
    loss = DIGITS.loss(outputs, boxes)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())
    assert all(one.grad is not None and one.grad.isfinite().all() for one in outputs)
    assert all(one.grad.any() for one in outputs[1::2])
    assert any(one.grad.any() for one in outputs[::2]) == bool((boxes[..., 0] >= 0).any())


@pytest.mark.parametrize("box", [[0, 0, 64, 64], [0, 0, 3, 5], [61, 50, 64, 64], [30.1, 30.1, 31.2, 31.4]])
def test_a_box_of_any_size_and_place_is_learnt(box):
    """Free outputs instead of a network: gradient steps lead to the box, and to nothing else."""
    boxes = torch.tensor([[[5, *box]]], dtype=torch.float32)
    torch.manual_seed(0)
    outputs = [(torch.randn_like(one) / 10 - 2 * (one.shape[1] > 4)).requires_grad_() for one in told(boxes)]
    optimizer = torch.optim.Adam(outputs, 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        DIGITS.loss(outputs, boxes).backward()
        optimizer.step()
    (found,) = DIGITS.decode(outputs)
    assert found["labels"].tolist() == [5]
    assert (found["boxes"][0] - boxes[0, 0, 1:]).abs().max() < 1


def test_the_truth_costs_less_than_what_is_near():
    """On one level, where an object has no more positions than are assigned to it."""
    _, boxes = scenes(4)

    def cost(of: Tensor) -> float:
        return DIGITS.loss(told(of, strides=(8,)), boxes).item()

    assert cost(boxes) < 0.1
    assert cost(boxes) < cost(shifted(boxes, 1.0)) < cost(shifted(boxes, 4.0))
    assert cost(boxes) < cost(relabelled(boxes))


def test_a_network_learns_a_few_scenes():
    images, boxes = scenes(8)
    torch.manual_seed(0)
    model = repnets.create_model("toy_detector", num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(40):
        loss = DIGITS.loss(list(named(model(images)).values()), boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    with torch.no_grad():
        assert DIGITS.score(list(named(model(images)).values()), boxes) > 0.05


def test_it_is_drawn_in_red_and_nothing_is_drawn_where_nothing_is():
    picture = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    found, nothing = DIGITS.decode(told(torch.cat([TWO, NONE])))
    drawn = DIGITS.draw(picture, found)
    assert (drawn.dtype, drawn.shape) == (torch.uint8, picture.shape)
    assert drawn[:, 20, 8].tolist() == drawn[:, 58, 50].tolist() == [255, 0, 0]
    assert not DIGITS.draw(picture, nothing).any()


def of_shapes(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(2, *shape) for shape in shapes]


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (of_shapes((10,)), r"gives \(2, 10\) for two images, and must give two maps a level"),
        (of_shapes((4, 8, 8), (10, 8, 8), (4, 4, 4)), "must give two maps a level"),
        (of_shapes((10, 8, 8), (4, 8, 8)), "a map of boxes.*and one of classes of the same size must follow"),
        (of_shapes((4, 8, 8), (80, 8, 8)), "its boxes are of 80 classes, and the data set has 10"),
        (of_shapes((4, 7, 8), (10, 7, 8)), "map of 7 x 8 positions does not divide an input of 64 x 64 pixels"),
        (of_shapes((4, 4, 8), (10, 4, 8)), "does not divide an input of 64 x 64 pixels into squares"),
    ],
)
def test_outputs_of_another_kind_are_refused_in_words(outputs, reason):
    with pytest.raises(ValueError, match=reason):
        DIGITS.require(outputs, (SIDE, SIDE), 1)


def test_the_detectors_that_are_built_in_fit():
    with torch.device("meta"):
        for name, size in (("toy_detector", (64, 96)), ("repdet_n", (64, 128))):
            given = repnets.create_model(name, num_classes=10).eval()(torch.empty(2, 3, *size))
            Detection(DIGITS.labels, size).require(list(named(given).values()), size, 1)
