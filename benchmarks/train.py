"""Images a second of this project's training loop against the loop of a tutorial, on the same network.

    python benchmarks/train.py                                  toy and repvgg_a0 on digits at 32 x 32
    python benchmarks/train.py --model mobileone_s0 --image-size 64 --epochs 15 --rounds 1

ours       pipeline.models.training.fit itself: images held as tensors, resized and augmented a batch at a time,
           channels_last, bfloat16 where the processor has it.
tutorial   what most begin with: a Dataset whose samples pass through torchvision transforms one by one,
           a DataLoader with two workers, float32, the default order of memory.

Both see the same images, with the same kind of augmentation, batch size, optimizer and schedule. They run
in turn (A B A B), so that whatever else the machine does meets both; the ratio is the median over the
rounds. Images a second are those of the training steps, without validation. The digits are looked up once
before the clock starts.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.project import Training
from pipeline.config.stages import SplitSettings
from pipeline.data import splits
from pipeline.stages import split

WORKERS = 2


def ours(model, images, preprocessing, training):
    """(images a second, accuracy) of pipeline.stages.train."""
    records = training.fit(model, images, preprocessing, training).records
    return statistics.median(one["images_per_second"] for one in records), records[-1]["val_accuracy"]


class Samples:
    """A Dataset as in a tutorial: one image, through torchvision transforms, when it is asked for."""

    def __init__(self, images, part, preprocessing, augment):
        import torch
        from torchvision.transforms import v2

        size = preprocessing.image_size
        moved = [v2.RandomCrop(size, padding=size // 16, padding_mode="reflect")] if augment else []
        if augment and images.facts.mirror:
            moved.append(v2.RandomHorizontalFlip())
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(size, antialias=True),
                v2.CenterCrop(size),
                *moved,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
            ]
        )
        self.items = [
            (self._image(images, number), int(images.images.targets[number])) for number in images.parts[part]
        ]

    def _image(self, images, number):
        from torchvision.transforms.v2.functional import to_pil_image

        return to_pil_image(images.images.pixels[number].expand(3, -1, -1).contiguous())

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        image, label = self.items[number]
        return self.transform(image), label


def tutorial(model, images, preprocessing, training):
    """(images a second, accuracy) of a plain loop."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Samples(images, "train", preprocessing, augment=True),
        batch_size=training.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    held_out = DataLoader(Samples(images, "val", preprocessing, augment=False), batch_size=256, num_workers=WORKERS)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=True,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        training.learning_rate,
        total_steps=training.epochs * len(loader),
        pct_start=min(0.5, 1 / training.epochs),
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=training.label_smoothing)
    rates = []
    for _ in range(training.epochs):
        model.train()
        start, seen = time.perf_counter(), 0
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = loss_of(model(batch), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            seen += len(batch)
        rates.append(seen / (time.perf_counter() - start))
    model.eval()
    with torch.no_grad():
        right = sum(int((model(batch).argmax(1) == labels).sum()) for batch, labels in held_out)
    return statistics.median(rates), right / len(held_out.dataset)


def main() -> int:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["toy", "repvgg_a0"], help="default: %(default)s")
    parser.add_argument("--data", default="digits", help="data set, held in memory; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=32, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=Training().epochs, help="of each run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each loop, in turn; default: %(default)s")
    parser.add_argument("--threads", type=int, help="that torch may use; default: as torch chooses")
    options = parser.parse_args()

    import torch

    import repnets

    if options.threads:
        torch.set_num_threads(options.threads)
    training = Training(epochs=options.epochs, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPNETS_STORE"] = os.environ.get("REPNETS_STORE", folder)
        place = Path(folder) / "split.json"
        split.run(SplitSettings(name=options.data, root=None, val_fraction=0.2, split_seed=0), output=place)
        images = splits.open_split(place)
    preprocessing = images.preprocessing(options.image_size, "bilinear")
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads of "
        f"{os.cpu_count()} cores, {images.size('train')} training images, batch {training.batch_size}, "
        f"{training.epochs} epochs, n = {options.rounds}, load {os.getloadavg()[0]:.1f}"
    )
    for name in options.model:
        found = {loop: [] for loop in (tutorial, ours)}
        for number in range(options.rounds):
            for loop in found:
                torch.manual_seed(number)
                model = repnets.create_model(name, num_classes=len(images.classes))
                own = training.model_copy(update={"seed": number})
                found[loop].append(loop(model, images, preprocessing, own))
        ratios = [b[0] / a[0] for a, b in zip(found[tutorial], found[ours], strict=True)]
        print(f"\n{name} at {options.image_size} x {options.image_size}, load {os.getloadavg()[0]:.1f} after")
        print(f"{'loop':10} {'images/s':>10} {'accuracy':>9}   each round")
        for loop, results in found.items():
            rates = ", ".join(f"{rate:.0f}" for rate, _ in results)
            accuracy = statistics.median(right for _, right in results)
            rate = statistics.median(rate for rate, _ in results)
            print(f"{loop.__name__:10} {rate:10.0f} {accuracy:9.2%}   {rates}")
        print(f"ours/tutorial: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
