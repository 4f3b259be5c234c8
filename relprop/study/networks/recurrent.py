"""The recurrences over features u_1 … u_T of the strips: Deep and R-LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relprop.study.networks.layers import Dropout, Features, dense

__all__ = ["RLSTM", "Deep"]


class Deep(nn.Module):
    """h_t = relu(W_c [u_t, r_(t-1)]), r_t = relu(W_r h_t), o = relu(W_o1 h_T), y = W_o2 o.

    Args:
        features: images to `[batch, steps, features.features]`.
        hidden, recur, out: units of h, r, o.
    """

    def __init__(
        self, features: Features, hidden: int = 128, recur: int = 256, out: int = 32
    ) -> None:
        super().__init__()
        self.features = features
        self.hidden = dense(features.features + recur, hidden)
        self.recur = dense(hidden, recur)
        self.out = dense(hidden, out)
        self.output = dense(out, 10)
        self.dropout = Dropout()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, 10]` of images `[batch, 1, 28, columns]`."""
        features = self.features(images)
        state = features.new_zeros(len(features), self.recur.out_features)
        drop = self.dropout.begin(state)
        # D([D(u), r]) is [D(D(u)), D(r)]: what needs no state is done for all steps at once
        for u in drop(drop(features)).unbind(1):
            h = torch.relu(self.hidden(torch.cat([u, drop(state)], 1)))
            state = torch.relu(self.recur(drop(h)))
        o = torch.relu(self.out(drop(h)))
        logits: Tensor = self.output(o)
        return logits


class RLSTM(nn.Module):
    """The LSTM whose candidate and output are rectified: nothing in it is negative.

    With v = [u_t, h_(t-1)]: i, f, o = sigmoid(W v + b), c_t = i * relu(W_c v) + f * c_(t-1),
    h_t = o * c_t, y = W_o h_T.

    Args:
        features: images to `[batch, steps, features.features]`.
        recur: units of c and h.
        stationary: dropout with one mask for all steps (-SD).
    """

    def __init__(self, features: Features, recur: int, *, stationary: bool) -> None:
        super().__init__()
        self.features = features
        self.gates = dense(features.features + recur, 3 * recur, bias=True)
        self.candidate = dense(features.features + recur, recur)
        self.output = dense(recur, 10)
        self.dropout = Dropout(stationary)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, 10]` of images `[batch, 1, 28, columns]`."""
        features = self.features(images)
        features = self.dropout.begin(features[:, :1])(features)
        h = c = features.new_zeros(len(features), self.output.in_features)
        drop = self.dropout.begin(h)
        for u in features.unbind(1):
            v = torch.cat([u, h], 1)
            i, f, o = torch.sigmoid(self.gates(v)).chunk(3, 1)
            c = i * torch.relu(self.candidate(v)) + f * c
            h = drop(o * c)
        logits: Tensor = self.output(h)
        return logits
