"""A text classifier explained word by word: copy this for your own sequences.

Run `python figures/sequence_example.py` (half a minute): writes sequence_example.png beside this
file.  The text is real and everybody has it: sentences from the documentation strings of Python's
own library.  An LSTM that reads both ways learns whether a sentence is about numbers or about
networks; sentences it has not seen are drawn with the relevance of every word, red for the class
it chose, blue against it.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import relprop
from relprop.image.colours import colours
from relprop.rules import Epsilon

CLASSES = ("numbers", "networks")
MODULES = {
    "numbers": ("cmath", "decimal", "fractions", "math", "numbers", "random", "statistics"),
    "networks": (
        "ftplib", "http.client", "http.cookiejar", "http.server", "imaplib", "ipaddress", "poplib",
        "smtplib", "socket", "socketserver", "ssl", "urllib.parse", "urllib.request",
    ),
}  # fmt: skip
LONGEST = 16
SHORTEST = 5


class Reader(nn.Module):
    """Words to classes: embedding, an LSTM both ways, its last states."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 16)
        self.recurrent = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(32, len(CLASSES))

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers `[batch, T]` to logits `[batch, classes]`."""
        _, (states, _) = self.recurrent(self.embedding(words))
        logits: Tensor = self.classes(torch.cat([states[0], states[1]], 1))
        return logits


def sentences(label: str) -> list[list[str]]:
    """Sentences of the modules' documentation strings, as words."""
    found = set()
    for name in MODULES[label]:
        for text in _documentation(importlib.import_module(name)):
            for sentence in re.split(r"[.:;]\s|\n\s*\n", text):
                words = re.findall(r"[a-z]+", sentence.lower())
                if SHORTEST <= len(words) <= LONGEST:
                    found.add(tuple(words))
    return [list(words) for words in sorted(found)]


def _documentation(module: Any) -> Iterator[str]:
    owners = [module, *(value for _, value in inspect.getmembers(module))]
    for owner in owners:
        if owner is not module and getattr(owner, "__module__", None) != module.__name__:
            continue
        yield inspect.getdoc(owner) or ""
        if inspect.isclass(owner):
            yield from (inspect.getdoc(value) or "" for value in vars(owner).values())


def padded(texts: list[list[str]], numbers: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Word numbers `[batch, T]`, 0 for padding and unknown words; lengths `[batch]`."""
    rows = [torch.tensor([numbers.get(word, 0) for word in words]) for words in texts]
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def train(texts: list[list[str]], labels: Tensor, numbers: dict[str, int]) -> Reader:
    """Train on batches of equally long sentences, so that no padding is seen."""
    torch.manual_seed(0)
    model = Reader(len(numbers) + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=1e-4)
    words, lengths = padded(texts, numbers)
    for _ in range(25):
        for length in torch.randperm(LONGEST + 1).tolist():
            chosen = (lengths == length).nonzero().flatten()
            if len(chosen):
                logits = model(words[chosen, :length])
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, labels[chosen]).backward()
                optimizer.step()
    return model.eval()


def draw(
    texts: list[list[str]], relevance: Tensor, titles: list[str], path: Path, width: int = 100
) -> None:
    """Every sentence on a line, every word on the colour of its relevance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 0.42 * len(texts) + 0.3))
    axes.set(xlim=(0, width), ylim=(-len(texts) + 0.4, 0.6))
    axes.axis("off")
    for line, (words, values, title) in enumerate(zip(texts, relevance, titles, strict=True)):
        shades = colours((values / values.abs().max()).reshape(1, -1)).squeeze(0) / 255
        axes.text(0, -line, title, va="center", fontsize=9, family="monospace", color="0.35")
        at = 17.0
        for word, shade in zip(words, shades, strict=False):
            size = 0.9 * len(word)
            dark = shade.mean() < 0.5
            axes.text(
                at + size / 2, -line, word, va="center", ha="center", fontsize=9,
                family="monospace", color="white" if dark else "black",
                bbox={"facecolor": shade, "edgecolor": "none", "pad": 2.0},
            )  # fmt: skip
            at += size + 1.2
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Train, explain sentences that were held out, draw them."""
    texts = [(words, index) for index, name in enumerate(CLASSES) for words in sentences(name)]
    random.Random(0).shuffle(texts)
    held, rest = texts[: len(texts) // 5], texts[len(texts) // 5 :]
    counts = Counter(word for words, _ in rest for word in words)
    numbers = {word: i for i, word in enumerate(sorted(w for w in counts if counts[w] > 1), 1)}
    model = train([words for words, _ in rest], torch.tensor([k for _, k in rest]), numbers)

    words, lengths = padded([words for words, _ in held], numbers)
    labels = torch.tensor([label for _, label in held])
    explainer = relprop.Explainer(model, Epsilon(1e-3))
    # each sentence as if it were alone: padding is never read and gets exactly 0
    result = explainer.explain(words, target=labels, lengths=lengths)
    chosen = result.output.argmax(1)
    accuracy = (chosen == labels).float().mean().item()
    print(f"{len(rest)} sentences to learn from, {len(held)} held out, {accuracy:.1%} right")

    assert isinstance(result.relevance, Tensor)
    sure = result.output.softmax(1).max(1).values
    clear = [i for i in range(len(held)) if chosen[i] == labels[i] and sure[i] > 0.9]
    shown = [i for label in range(len(CLASSES)) for i in clear if labels[i] == label]
    shown = shown[:5] + shown[-5:]
    path = Path(__file__).with_suffix(".png")
    draw(
        [held[i][0] for i in shown],
        result.relevance[shown],
        [f"{CLASSES[int(labels[i])]:>9} {sure[i]:.0%}" for i in shown],
        path,
    )
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
