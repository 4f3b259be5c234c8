"""Train a shipped network: `python -m relprop.models.train --task mnist`.

The 60,000 training images are split into 48,000 to train on and 12,000 to validate (seeded); the
official 10,000 test images are used once, at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import data
from relprop.data import Task
from relprop.errors import RelpropError
from relprop.models import MODELS, shipped, write_weights

__all__ = ["accuracy", "one_pass", "pseudo_class_loss", "train"]

TRAINING_IMAGES = 48_000
BATCH = 100


def pseudo_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the logits `[N, C]` and one more class whose logit is always 0.

    `mean(-y_t + log(1 + sum_k exp y_k))`: it drives the true logit above 0, which deep Taylor
    decomposition needs for relu(y_t) to be there to explain.
    """
    return F.cross_entropy(torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1), labels)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, batch: int = 500) -> float:
    """Share of a task's samples whose largest logit is the label's, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    right = sum(
        int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
        for images, labels, _ in task.batches(batch)
    )
    return right / max(len(task), 1)


def one_pass(
    network: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    done: Callable[[int], object] = lambda count: None,
    *,
    mixed: bool = False,
) -> float:
    """A step of the optimizer for each batch of images and labels; returns the mean loss.

    `done` is called after each step with its number of samples; `mixed`: products in bfloat16.
    """
    total: Tensor | float = 0.0
    count = 0
    for images, labels in batches:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            logits = network(images)
        loss = pseudo_class_loss(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = total + loss.detach() * len(labels)
        count += len(labels)
        done(len(labels))
    return float(total) / max(count, 1)


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
    kept, held = order[:count], data.single_task(images[order[count:]], labels[order[count:]])
    steps = epochs * -(-count // BATCH)
    # not fused, and the rate step by step: the shipped weights were made so, and come out again
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    validation = accuracy(model, held)
    for epoch in range(epochs):
        model.train()
        chosen = kept[torch.randperm(count)].split(BATCH)
        batches = ((images[own], labels[own]) for own in chosen)
        one_pass(model, optimizer, batches, lambda _: schedule.step())
        validation = accuracy(model, held)
        print(f"epoch {epoch + 1}/{epochs}: validation accuracy {validation:.4f}", flush=True)
    return model.eval(), validation


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
        test = accuracy(model, data.single_task(test_images, test_labels))
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
        write_weights(out, model.state_dict(), facts)
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
