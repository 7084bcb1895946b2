"""Trains LiteCNNPro on scikit-learn's handwritten digits, as a person would write it.

    python -m examples.digits.train --seed 1 --cycle 2

writes examples/digits/checkpoints_cycle2/best_model.pth and, once, held_out/*.png.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from examples.digits.litecnn import LiteCNNPro
from tasks.models.preprocess import parse_preprocess, preprocess

HERE = Path(__file__).parent
HELD_OUT = HERE / "held_out"

ARGUMENTS = {"num_classes": 10, "width": 0.5}
PREPROCESS = {
    "mode": "RGB",
    "resize": 36,
    "crop": 32,
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
SIDE = 64  # of the PNG files: the 8×8 originals are too small to look at
HELD_OUT_COUNT, VALIDATION_COUNT = 300, 300
EPOCHS, BATCH, RATE = 18, 64, 4e-3


def train(
    output: Path,
    *,
    seed: int,
    held_out: Path = HELD_OUT,
    progress: Callable[[str], None] = print,
) -> None:
    """Train from `seed` and save the best epoch, by validation accuracy, to the file `output`.

    The held-out digits, which neither training nor the choice of the epoch sees, are written to
    the folder `held_out` as <digit>_<index>.png. The same seed gives the same weights on the same
    machine.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # repeats on any number of cores, and suffers less beside other work
    images, labels = digits()
    training, validation, testing = split(labels)
    write_held_out(held_out, images, labels, testing)
    inputs = as_inputs(images)
    targets = torch.from_numpy(labels)

    model = LiteCNNPro(**ARGUMENTS)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2)
    batches = -(-len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * batches)
    best = -1.0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch in torch.from_numpy(training)[torch.randperm(len(training))].split(BATCH):
            loss = F.cross_entropy(model(shifted(inputs[batch])), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        val_acc = accuracy(model, inputs[validation], targets[validation])
        progress(f"epoch {epoch}/{EPOCHS}: loss {loss.item():.4f}, validation {val_acc:.2%}")
        if val_acc >= best:
            best = val_acc
            checkpoint = {
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "epoch": epoch,
                "val_acc": val_acc,
                "seed": seed,
            }
            save(checkpoint, output)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 digits: uint8 [N, 8, 8] from 0 to 255, and their labels int64 [N]."""
    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices for training, validation and the held-out set: the same whatever the seed."""
    rest, testing = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_COUNT, stratify=labels, random_state=0
    )
    training, validation = train_test_split(
        rest, test_size=VALIDATION_COUNT, stratify=labels[rest], random_state=0
    )
    return training, validation, np.sort(testing)


def enlarged(image: np.ndarray) -> Image.Image:
    """One digit as it is stored in a file."""
    return Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def as_inputs(images: np.ndarray) -> Tensor:
    """The network's inputs, float32 [N, 3, 32, 32], by the pipeline that serves them later."""
    settings = parse_preprocess(PREPROCESS)
    rows = [preprocess(enlarged(image), settings) for image in images]
    return torch.from_numpy(np.concatenate(rows))


def shifted(batch: Tensor, most: int = 3) -> Tensor:
    """Each image moved by up to `most` pixels each way: digits aren't always centred."""
    padded = F.pad(batch, (most, most, most, most), mode="replicate")
    height, width = batch.shape[2:]
    moves = torch.randint(0, 2 * most + 1, (len(batch), 2)).tolist()
    return torch.stack(
        [
            image[:, down : down + height, across : across + width]
            for image, (down, across) in zip(padded, moves, strict=True)
        ]
    )


@torch.no_grad()
def accuracy(model: LiteCNNPro, inputs: Tensor, targets: Tensor) -> float:
    """The share of `inputs` that the model, in eval mode, gets right."""
    model.eval()
    return (model(inputs).argmax(1) == targets).double().mean().item()


def write_held_out(
    folder: Path, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> None:
    """Write the digits at `indices` as PNG files named by their label."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        path = folder / f"{labels[index]}_{index:04d}.png"
        if not path.exists():
            enlarged(images[index]).save(path)


def save(checkpoint: dict[str, object], path: Path) -> None:
    """torch.save so that whoever watches the folder never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    with open(temporary, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--seed", type=int, default=0, help="where the weights start from")
    parser.add_argument("--cycle", type=int, default=1, help="N of checkpoints_cycleN")
    arguments = parser.parse_args()
    output = HERE / f"checkpoints_cycle{arguments.cycle}" / "best_model.pth"
    train(output, seed=arguments.seed)
    print(f"saved {output}")


if __name__ == "__main__":
    main()
