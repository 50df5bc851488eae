"""Masks, boxes and pictures go where their image goes."""

import pytest
import torch

from pipeline.artifacts.manifest import Preprocessing
from pipeline.data import datasets, scenes, targets, transforms
from pipeline.tasks.base import IGNORED

RESIZES = ("shorter_side_then_crop", "stretch", "letterbox")


def preprocessing(size=(30, 40), resize="stretch", **changed) -> Preprocessing:
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, (), resize=resize, **changed)


def scene(corners=(20, 10, 60, 70), size=(80, 100)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A white rectangle on black, its mask and its box, and a place without a box."""
    x1, y1, x2, y2 = corners
    pixels = torch.zeros(1, 1, *size, dtype=torch.uint8)
    pixels[:, :, y1:y2, x1:x2] = 255
    boxes = torch.tensor([[[2.0, x1, y1, x2, y2], [-1, 0, 0, 0, 0]]])
    return pixels, (pixels[:, 0] > 0).long(), boxes


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(30, 40), (80, 100), (100, 60), (37, 91)])
def test_masks_and_boxes_lie_where_the_image_shows_the_thing(size, resize):
    pixels, mask, boxes = scene()
    how = preprocessing(size, resize)
    image = transforms.resized(pixels, how)[0, 0]
    found = targets.fitted("mask", mask, pixels, how)[0]
    assert found.shape == size and found.dtype == torch.int64
    is_there = found != IGNORED
    assert bool((~is_there).any()) is (resize == "letterbox" and size in ((100, 60), (37, 91), (30, 40)))
    # but for the rounding of its rim, by a pixel
    inside, outside = (image > 0.95) & is_there, (image < 0.05) & is_there
    assert bool((found[inside] == 1).all()) and bool((found[outside] == 0).all()) and inside.sum() > 50
    ((box, none),) = targets.fitted("boxes", boxes, pixels, how)
    rows, columns = ((image > 0.5) & is_there).nonzero().unbind(1)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    torch.testing.assert_close(box[1:], torch.stack(seen).float(), atol=1.01, rtol=0)
    assert box[0] == 2 and none[0] == -1


def test_a_box_that_is_cut_off_is_none():
    pixels, _, boxes = scene(corners=(0, 10, 8, 70), size=(80, 200))
    ((cut, _),) = targets.fitted("boxes", boxes, pixels, preprocessing((80, 80), "shorter_side_then_crop"))
    assert cut.tolist() == [-1, 0, 0, 0, 0]


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_picture_that_is_wanted_is_the_image_itself_at_its_size(scale):
    pixels = torch.randint(0, 256, (2, 3, 90, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = targets.fitted("picture", torch.zeros(2), pixels, preprocessing(), scale)
    assert found.shape == (2, 3, 30 * scale, 40 * scale)
    if scale == 3:
        torch.testing.assert_close(found, pixels / 255)


def test_targets_are_mirrored_with_their_image():
    pixels, mask, boxes = scene()
    flip = torch.tensor([True])
    how = preprocessing((80, 100))
    image = transforms.resized(pixels, how).flip(-1)
    assert torch.equal(targets.mirrored("mask", mask, flip, 100), (image[:, 0] > 0.5).long())
    ((box, none),) = targets.mirrored("boxes", boxes, flip, 100)
    assert box.tolist() == [2, 40, 10, 80, 70] and none[0] == -1
    assert torch.equal(targets.mirrored("boxes", boxes, ~flip, 100), boxes)
    assert targets.mirrored("label", torch.tensor([3]), flip, 100).item() == 3


def test_scenes_are_the_same_each_time_and_their_boxes_are_those_of_their_masks():
    files = datasets.files_of(datasets.SCENES, None)
    of_boxes, of_masks = (datasets.read_images(datasets.SCENES, files, kind) for kind in ("boxes", "mask"))
    assert torch.equal(of_boxes.pixels, of_masks.pixels) and of_boxes.own_val == scenes.TRAIN
    assert of_masks.classes == ("background", *of_boxes.classes) and len(of_boxes.classes) == 10
    for number in range(0, len(of_boxes.pixels), 97):
        mask = of_masks.targets[number]
        there = [box for box in of_boxes.targets[number].tolist() if box[0] >= 0]
        assert there and {int(box[0]) + 1 for box in there} == set(mask.unique().tolist()) - {0}
        for label, x1, y1, x2, y2 in (map(int, box) for box in there):
            inside = mask[y1:y2, x1:x2] == label + 1
            assert all(bool(one.any()) for one in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
