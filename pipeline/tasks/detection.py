"""Boxes around objects, each with a class.

Of each level a network gives two raw maps, finest level first: `boxes` (N, 4, h, w), distances of the position's middle
to the left, top, right and bottom side of its box, in strides and before the softplus; and `classes`
(N, classes, h, w), logits. The stride is the input's size over the map's. `repnets.networks.detector` gives such maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

_COUNTED, _SHOWN = 0.03, 0.25  # least score of a box that the metric counts, and of one that is shown or compared
_OVERLAP = 0.65  # IoU from which the weaker of two boxes of a class is dropped
_MOST, _CANDIDATES = 100, 400  # boxes of an image, and how many are looked at for them
_SAME = 0.9  # IoU of two boxes that are the same
# task-aligned assignment: positions of an object, and exponents of score and overlap (arXiv 2108.07755, 2209.02976)
_POSITIONS, _ALPHA, _BETA = 13, 1.0, 6.0
_LEAST_OVERLAP = 0.01  # so that an object is learnt that no box overlaps yet
_OF_BOXES = 2.5  # weight of the boxes' loss; 1 is that of the classes'


class Found(TypedDict):
    """The boxes of an image, the surest first.

    Attributes:
        boxes: float32 (m, 4), x1, y1, x2, y2 in pixels of the network's input.
        scores: float32 (m,), from 0 to 1.
        labels: int64 (m,), numbers of classes.
    """

    boxes: "Tensor"
    scores: "Tensor"
    labels: "Tensor"


@dataclass(frozen=True)
class Detection:
    """Raw boxes and classes by level; task-aligned assignment and mAP.

    Attributes:
        labels: name of each class.
        size: height and width of the network's input, pixels.
    """

    labels: tuple[str, ...]
    size: tuple[int, int]
    name = "detection"
    metric = "mAP 50-95"
    targets = "boxes"

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """Boxes and classes in turn, level by level."""
        classes = len(self.labels)
        given = ", ".join(str(tuple(one.shape)) for one in outputs)
        if not outputs or len(outputs) % 2 or any(one.dim() != 4 for one in outputs):
            raise ValueError(
                f"it gives {given} for two images, and must give two maps a level, boxes (2, 4, height, width), then "
                f"classes (2, {classes}, height, width)"
            )
        for boxes, logits in zip(outputs[::2], outputs[1::2], strict=True):
            if boxes.shape[1] != 4 or boxes.shape[2:] != logits.shape[2:]:
                raise ValueError(
                    f"it gives {given} for two images: a map of boxes, (2, 4, height, width), and one of classes of "
                    "the same size must follow each other"
                )
            if logits.shape[1] != classes:
                raise ValueError(f"its boxes are of {logits.shape[1]} classes, and the data set has {classes}")
            (height, width), (high, wide) = size, boxes.shape[2:]
            if height % high or width % wide or height // high != width // wide:
                raise ValueError(
                    f"its map of {high} x {wide} positions does not divide an input of {height} x {width} pixels into "
                    "squares"
                )

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """Cross-entropy of the classes with how well each position fits its object, and GIoU of the boxes.

        Both are divided by the sum of those fits; see `_assigned`.
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits
        from torchvision.ops import generalized_box_iou_loss

        logits, boxes, points = _read(outputs, self.size)
        objects, fits = _assigned(logits.detach().sigmoid(), boxes.detach(), points, targets)
        label = targets[..., 0].long().clamp(min=0).gather(1, objects)
        wanted = torch.zeros_like(logits).scatter(2, label[..., None], fits[..., None])
        total = fits.sum().clamp(min=1)
        of_classes = binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        images, positions = (fits > 0).nonzero(as_tuple=True)
        around = targets[images, objects[images, positions], 1:].float()
        of_boxes = generalized_box_iou_loss(boxes[images, positions], around) * fits[images, positions]
        return (of_classes + _OF_BOXES * of_boxes.sum()) / total

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """Mean average precision over IoU 0.5 to 0.95 in steps of 0.05, as COCO has it; at most 100 boxes an image.

        Raises:
            ValueError: there is no box in any image.
        """
        from torchmetrics.detection import MeanAveragePrecision

        there = targets[..., 0] >= 0
        if not there.any():
            raise ValueError("no validation image has a box, so there is no mean average precision")
        average = MeanAveragePrecision(max_detection_thresholds=[1, 10, _MOST])
        average.warn_on_many_detections = False
        known = [
            {"boxes": one[have, 1:], "labels": one[have, 0].long()} for one, have in zip(targets, there, strict=True)
        ]
        average.update(self._found(outputs, _COUNTED), known)
        return float(average.compute()["map"])

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """Share of the boxes that both networks give: of the same class, IoU at least 0.9, scores at least 0.25.

        It is the number of such pairs over the number of boxes of the network that gives more, image by image; 1 where
        neither gives any.
        """
        from torchvision.ops import box_iou

        same = most = 0
        for one, other in zip(self.decode(outputs), self.decode(others), strict=True):
            alike = box_iou(one["boxes"], other["boxes"]) >= _SAME
            # two boxes of one network can not both be the same as one of the other: the weaker would have been dropped
            same += int((alike & (one["labels"][:, None] == other["labels"])).sum())
            most += max(len(one["labels"]), len(other["labels"]))
        return same / most if most else 1.0

    def decode(self, outputs: "Sequence[Tensor]") -> list[Found]:
        """The boxes of scores of at least 0.25, of which none overlaps a surer one of its class by 0.65 or more."""
        return self._found(outputs, _SHOWN)

    def draw(self, picture: "Tensor", decoded: Found) -> "Tensor":
        """The boxes, with class and score."""
        from torchvision.utils import draw_bounding_boxes

        if not len(decoded["labels"]):
            return picture
        pairs = zip(decoded["labels"].tolist(), decoded["scores"].tolist(), strict=True)
        (high, wide), (height, width) = picture.shape[-2:], self.size
        boxes = decoded["boxes"] * decoded["boxes"].new_tensor([wide / width, high / height] * 2)
        return draw_bounding_boxes(
            picture, boxes, [f"{self.labels[label]} {score:.2f}" for label, score in pairs], colors="red"
        )

    def _found(self, outputs: "Sequence[Tensor]", least: float) -> list[Found]:
        import torch
        from torchvision.ops import batched_nms

        with torch.no_grad():
            logits, boxes, _ = _read(outputs, self.size)
            scores, places = logits.sigmoid().flatten(1).topk(min(_CANDIDATES, logits[0].numel()), sorted=True)
            height, width = self.size
            boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
            found: list[Found] = []
            for own, its_scores, its_places in zip(boxes, scores, places, strict=True):
                count = int((its_scores >= least).sum())
                sure, at = its_scores[:count], its_places[:count]
                around, label = own[at // logits.shape[2]], at % logits.shape[2]
                kept = batched_nms(around, sure, label, _OVERLAP)[:_MOST]
                found.append({"boxes": around[kept], "scores": sure[kept], "labels": label[kept]})
        return found


def _read(outputs: "Sequence[Tensor]", size: tuple[int, int]) -> tuple["Tensor", "Tensor", "Tensor"]:
    """All levels' positions in a row.

    Returns:
        float32 (N, positions, classes) logits; (N, positions, 4) boxes x1, y1, x2, y2 in pixels; (positions, 2) the
        middles of the positions, x and y in pixels.
    """
    import torch
    from torch.nn.functional import softplus

    boxes, points = [], []
    for level in outputs[::2]:
        high, wide = level.shape[2:]
        stride = size[0] / high
        rows, columns = (torch.arange(count, device=level.device) + 0.5 for count in (high, wide))
        middles = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).flatten(0, 1) * stride
        left_top, right_bottom = (softplus(level.float()) * stride).flatten(2).mT.split(2, 2)
        boxes.append(torch.cat([middles - left_top, middles + right_bottom], 2))
        points.append(middles)
    logits = [level.float().flatten(2).mT for level in outputs[1::2]]
    return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points)


def _assigned(scores: "Tensor", boxes: "Tensor", points: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Which object each position is to find, and how well it fits (task alignment, arXiv 2108.07755, section 3.2).

    An object's candidates are the positions whose middle lies inside of its box, or where there is none, the nearest to
    being so. The 13 with the largest score x IoU^6 are assigned to it; a position that two objects want goes to the one
    it overlaps more. Its fit is that product, scaled so that the best of an object is the largest IoU with it.

    Args:
        scores: (N, positions, classes), from 0 to 1.
        boxes: (N, positions, 4) in pixels.
        points: (positions, 2) in pixels.
        targets: (N, objects, 5).

    Returns:
        int64 (N, positions), the object's row in `targets`, 0 where there is none; float32 (N, positions), its fit, 0
        where there is none.
    """
    import torch
    from torchvision.ops import box_iou

    there, around = targets[..., 0] >= 0, targets[..., 1:].float()
    label = targets[..., 0].long().clamp(min=0)
    overlaps = box_iou(around, boxes).clamp(min=_LEAST_OVERLAP)  # (N, objects, positions), as all below
    of_class = scores.mT.gather(1, label[..., None].expand(-1, -1, scores.shape[1]))
    depth = torch.cat([points - around[..., None, :2], around[..., None, 2:] - points], -1).amin(-1)
    inside = (depth > 0) | (depth == depth.amax(-1, keepdim=True))
    fits = torch.where(inside & there[..., None], of_class**_ALPHA * overlaps**_BETA, 0)
    best, places = fits.topk(min(_POSITIONS, fits.shape[2]))
    fits = torch.zeros_like(fits).scatter(2, places, best)
    wanted = torch.where(fits > 0, overlaps, 0)
    fits = torch.where(wanted == wanted.amax(1, keepdim=True), fits, 0)
    scale = overlaps.where(fits > 0, 0).amax(-1, keepdim=True) / fits.amax(-1, keepdim=True).clamp(min=1e-30)
    fit, objects = (fits * scale).max(1)
    return objects, fit
