"""Training that survives interruptions: the same epochs, to the bit, however often it is resumed.

Everything random in an epoch follows from the seed and the epoch's number, and a checkpoint after
each epoch holds the rest: weights, the optimizer's moments, the best weights so far, the log.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from relprop.atomic import replacing
from relprop.data import Task
from relprop.errors import FileFormatError, InputError
from relprop.models import write_weights
from relprop.models.train import accuracy, one_pass

__all__ = ["Recipe", "Training"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _of(default: Any, help: str, **word: Any) -> Any:
    """A field with its option of `relprop train`: its help, its name if that is another."""
    return field(default=default, metadata={"help": help, **word})


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam whose rate falls to 0 along a half cosine over `epochs`.

    The attributes are the options of `relprop train`, each with its help, and

        accepted: validation accuracy, 0 to 1, below which training does not stop early.
    """

    seed: int = _of(0, "of the first weights, the order of samples and dropout (%(default)s)")
    epochs: int = _of(10, "at most so many (%(default)s)")
    batch: int = _of(50, "samples a step (%(default)s)", option="batch-size")
    rate: float = _of(1e-3, "Adam's at first (%(default)s)", option="lr")
    accepted: float = 0.0
    patience: int = _of(5, "stop after so many epochs without a gain, once accepted (%(default)s)")
    compiled: bool = _of(
        False, "through torch.compile, channels last; wants a C++ compiler", option="compile"
    )
    mixed: bool = _of(False, "products in bfloat16, weights and their steps in float32")
    dropout_from: int = _of(
        1,
        "the first epoch with dropout: recurrences begin to learn sooner without (%(default)s)",
        metavar="EPOCH",
    )
    start_from: str = _of(
        "",
        "begin with what fits of its shipped weights for the task, as convolutions do; channels "
        "that it has not begin at 0",
        metavar="ARCHITECTURE",
    )
    dropout_until: int = _of(
        0,
        "the last epoch with dropout, 0 for the end: epochs without it fit closer (%(default)s)",
        metavar="EPOCH",
    )

    def __post_init__(self) -> None:
        counts = self.epochs, self.batch, self.patience, self.dropout_from
        whole = min(self.seed, self.dropout_until) >= 0 and min(counts) >= 1
        if not whole or not (math.isfinite(self.rate) and self.rate > 0):
            raise InputError(
                f"{self}: expected a seed and dropout_until of 0 or more; epochs, batch, "
                "patience and dropout_from of 1 or more; a rate above 0"
            )


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network as torch.compile makes it."""
    folder = Path(torch.__file__).parent
    if " " in str(folder):  # which torch hands to the compiler without quotation marks
        raise InputError(
            f"torch.compile cannot link against PyTorch in {folder}, whose path has a space: "
            "expected one without; train without `compiled` (--compile), or in an environment "
            "whose path has no space"
        )
    return torch.compile(model)


@dataclass
class Training:
    """One network's training, from its last checkpoint or from the start.

    Attributes:
        make: a new network, its weights drawn from torch's random numbers.
        folder: where `checkpoint.safetensors` and `log.jsonl` lie, or will.
        recipe: how to train; a checkpoint of another recipe is refused.
        device: where to train.
        facts: what the checkpoint must have been made for, beside the recipe.
        log: one entry an epoch: epoch, loss, validation_accuracy, rate, seconds.
    """

    make: Callable[[], nn.Module]
    folder: Path
    recipe: Recipe = field(default_factory=Recipe)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with _seeded(1000 * self.recipe.seed, self.device):
            self.model = self.make().to(self.device)
        self.network: Callable[[Tensor], Tensor] = self.model
        if self.recipe.compiled:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.network = _compiled(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), self.recipe.rate, fused=True)
        self.log: list[dict[str, float]] = []
        self.best_state = self._copied_state()
        if self.checkpoint.exists():
            self._resume()

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted training goes on from."""
        return self.folder / "checkpoint.safetensors"

    @property
    def best(self) -> dict[str, float]:
        """The first log entry of the greatest validation accuracy; epoch 0 before the first."""
        start = {"epoch": 0, "validation_accuracy": -1.0}
        return max([start, *self.log], key=lambda entry: entry["validation_accuracy"])

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the accepted accuracy has long not been bettered."""
        waited = len(self.log) - self.best["epoch"]
        good = self.best["validation_accuracy"] >= self.recipe.accepted
        return len(self.log) >= self.recipe.epochs or (good and waited >= self.recipe.patience)

    def best_model(self) -> nn.Module:
        """The network of the best epoch, in evaluation mode, on the CPU."""
        with _seeded(0, self.device):
            model = self.make()
        model.load_state_dict(self.best_state)
        return model.eval()

    def epoch(
        self, task: Task, validation: Task, advance: Callable[[int], None] = lambda count: None
    ) -> dict[str, float]:
        """Train one more epoch, write the checkpoint and the log; returns the epoch's log entry.

        Args:
            task, validation: samples, on the training's device.
            advance: called with the number of samples of each step done.

        Raises: InputError where the loss is no longer finite.
        """
        number, started = len(self.log) + 1, time.monotonic()
        with _seeded(1000 * self.recipe.seed + number, self.device):
            loss = self._pass(task, number, advance)
        if not math.isfinite(loss):
            raise InputError(
                f"{self.folder}: the loss of epoch {number} is {loss}; train again, with a smaller "
                f"rate than {self.recipe.rate:g}"
            )
        entry = {
            "epoch": number,
            "loss": loss,
            "validation_accuracy": accuracy(self.model, validation),
            "rate": self._rate(number - 1),
            "seconds": round(time.monotonic() - started, 1),
        }
        if entry["validation_accuracy"] > self.best["validation_accuracy"]:
            self.best_state = self._copied_state()
        self.log.append(entry)
        self._save()
        return entry

    def _pass(self, task: Task, number: int, advance: Callable[[int], None]) -> float:
        """One pass over the samples in random order; the mean loss."""
        last = self.recipe.dropout_until or number
        self.model.train(self.recipe.dropout_from <= number <= last)
        batches = self._batches(task, number)
        return one_pass(self.network, self.optimizer, batches, advance, mixed=self.recipe.mixed)

    def _batches(self, task: Task, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in random order; before each batch the optimizer gets its step's rate."""
        order = torch.randperm(len(task)).to(self.device).split(self.recipe.batch)
        for step, chosen in enumerate(order):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(number - 1 + step / len(order))
            images, labels, _ = task.batch(chosen)
            yield images, labels

    def _rate(self, epochs_done: float) -> float:
        return self.recipe.rate * 0.5 * (1 + math.cos(math.pi * epochs_done / self.recipe.epochs))

    def _copied_state(self) -> dict[str, Tensor]:
        return {
            key: x.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, x in self.model.state_dict().items()
        }

    def _save(self) -> None:
        tensors = {f"model.{key}": x for key, x in self._copied_state().items()}
        tensors |= {f"best.{key}": x for key, x in self.best_state.items()}
        for key, parameter in self.model.named_parameters():
            # a parameter that got no gradient has no moments yet
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{name}.{key}": moments[name] for name in MOMENTS if moments}
        facts = {"recipe": asdict(self.recipe), "facts": dict(self.facts), "log": self.log}
        write_weights(self.checkpoint, tensors, facts)
        with replacing(self.folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.log))

    def _resume(self) -> None:
        try:
            with safe_open(self.checkpoint, framework="pt") as file:
                kept = json.loads((file.metadata() or {})["training"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self._refuse_other(kept)
            self.model.load_state_dict(_part(tensors, "model"))
            self.best_state = _part(tensors, "best")
            self.log = list(kept["log"])
            self._restore_moments({name: _part(tensors, name) for name in MOMENTS})
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise FileFormatError(
                f"{self.checkpoint}: cannot go on from it: {error}. Remove it, or train with "
                "--restart."
            ) from error

    def _refuse_other(self, kept: Mapping[str, Any]) -> None:
        own = {**asdict(self.recipe), **self.facts}
        found = {**asdict(Recipe()), **kept["recipe"], **kept["facts"]}
        wrong = [f"{key} {found.get(key)!r}, now {own[key]!r}" for key in own
                 if found.get(key) != own[key]]  # fmt: skip
        if wrong:
            raise InputError(
                f"{self.checkpoint} was made with another recipe: {'; '.join(wrong)}. Give the "
                "same, another folder, or --restart."
            )

    def _restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        for key, parameter in self.model.named_parameters():
            if key in moments["step"]:
                kept = {name: moments[name][key].to(self.device) for name in MOMENTS}
                for name in MOMENTS[1:]:  # the fused step wants them to lie as the parameter does
                    kept[name] = torch.empty_like(parameter).copy_(kept[name])
                self.optimizer.state[parameter] = kept


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    start = f"{prefix}."
    return {key.removeprefix(start): x for key, x in tensors.items() if key.startswith(start)}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from a seed inside, outside as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
