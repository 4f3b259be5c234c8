"""Train a shipped network: `python -m relprop.models.train --task mnist`.

The 60,000 training images are split into 48,000 to train on and 12,000 to validate (seeded); the
official 10,000 test images are used once, at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from relprop import data
from relprop.atomic import replacing
from relprop.errors import RelpropError
from relprop.models import MODELS, shipped

__all__ = ["accuracy", "pseudo_class_loss", "train"]

TRAINING_IMAGES = 48_000
BATCH = 100


def pseudo_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the logits `[N, C]` and one more class whose logit is always 0.

    `mean(-y_t + log(1 + sum_k exp y_k))`: it drives the true logit above 0, which deep Taylor
    decomposition needs for relu(y_t) to be there to explain.
    """
    return F.cross_entropy(torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1), labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images whose largest logit is the label's; the model is put in evaluation mode."""
    model.eval()
    pairs = zip(images.split(batch), labels.split(batch), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return right / max(len(labels), 1)


def train(
    name: str, images: Tensor, labels: Tensor, *, epochs: int, seed: int, rate: float
) -> tuple[nn.Module, float]:
    """Train the network `name` with Adam, batches of 100, on float32 images `[N, 1, 28, 28]`.

    The learning rate falls from `rate` to 0 along a half cosine.  The first four fifths of a seeded
    permutation train, the rest validate.  Returns the model and its validation accuracy.
    """
    torch.manual_seed(seed)
    model = shipped(name).network()
    order = torch.randperm(len(images))
    count = min(TRAINING_IMAGES, len(images) * 4 // 5)
    kept, held = order[:count], order[count:]
    steps = epochs * -(-count // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    validation = accuracy(model, images[held], labels[held])
    for epoch in range(epochs):
        model.train()
        for chosen in kept[torch.randperm(count)].split(BATCH):
            loss = pseudo_class_loss(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        validation = accuracy(model, images[held], labels[held])
        print(f"epoch {epoch + 1}/{epochs}: validation accuracy {validation:.4f}", flush=True)
    return model.eval(), validation


def save(model: nn.Module, path: Path, facts: dict[str, object]) -> None:
    """Write the weights with their `facts` as safetensors, all at once or not at all."""
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"training": json.dumps(facts)})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    name = f"{options.task}_cnn"
    out = options.out or Path(f"{name}.safetensors")
    try:
        images, labels = data.load(options.task, "train", options.root)
        test_images, test_labels = data.load(options.task, "test", options.root)
        model, validation = train(
            name, images, labels, epochs=options.epochs, seed=options.seed, rate=options.lr
        )
        test = accuracy(model, test_images, test_labels)
        facts = {
            "model": name,
            "dataset": options.task,
            "test_accuracy": test,
            "test_images": len(test_labels),
            "validation_accuracy": validation,
            "epochs": options.epochs,
            "seed": options.seed,
            "batch": BATCH,
            "learning_rate": options.lr,
            "torch": torch.__version__,
        }
        save(model, out, facts)
    except (RelpropError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: test accuracy {test:.4f} on {len(test_labels)} images")
    return 0


def _parser() -> argparse.ArgumentParser:
    tasks = [model.dataset for model in MODELS.values()]
    parser = argparse.ArgumentParser(prog="python -m relprop.models.train", description=__doc__)
    parser.add_argument("--task", choices=tasks, required=True, help="data set to train on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's first learning rate")
    parser.add_argument("--root", type=Path, help="folder of the IDX files (default: see README)")
    parser.add_argument("--out", type=Path, help="file to write (default: TASK_cnn.safetensors)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
