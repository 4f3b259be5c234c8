"""The study's architectures: their equations and sizes, and what they hand back as relevance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.errors import FileFormatError, InputError
from relprop.rules import Joint
from relprop.study import networks as study
from relprop.study.networks.layers import Dropout, HalfSumPool, convolution, dense

SINGLE, MAJORITY = (1, 28), (12, 7)
CASES = [
    (name, *sizes)
    for name in study.ARCHITECTURES
    for sizes in (SINGLE, MAJORITY)
    if name != "lenet" or sizes == SINGLE
]
LRP = ("lrp", 1.5, 0.5)


def network(name: str, steps: int, width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return study.build(name, steps, width).double().eval()


def images_of(steps: int, width: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 1, 28, steps * width)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key.removesuffix(".weight"): x.detach() for key, x in model.named_parameters()}


def close(found: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# Sizes, counted by hand: (12, 7) reads 28 x 7 = 196 pixels a step, (1, 28) 784.
PARAMETERS = {
    "shallow": ((196 + 256) * 256 + 256 * 256 + 256 * 10, 588 * 256),
    "deep": (196 * 256 + 512 * 128 + 128 * 256 + 128 * 32 + 320, 588 * 256),
    "deep_v2": (196 * 128 + 128 * 256 + 512 * 128 + 128 * 256 + 128 * 32 + 320, 588 * 128),
    "conv_deep": (600 + 6912 + 448 * 128 + 384 * 128 + 128 * 288 + 320, (1568 - 448) * 128),
    "conv_plus_deep": (
        25 * 24 * 25 + 9 * 56 * 32 + 448 * 128 + 384 * 128 + 128 * 288 + 320,
        (1568 - 448) * 128,
    ),
    "r_lstm": (196 * 256 + 328 * 288 + 216 + 720, 588 * 256),
    "r_lstm_sd": (196 * 256 + 328 * 288 + 216 + 720, 588 * 256),
    "conv_r_lstm": (600 + 6912 + 448 * 128 + 224 * 384 + 288 + 960, (1568 - 448) * 128),
    "conv_r_lstm_sd": (600 + 6912 + 448 * 128 + 224 * 384 + 288 + 960, (1568 - 448) * 128),
    "conv_plus_r_lstm_sd": (
        25 * 24 * 25 + 9 * 56 * 32 + 448 * 128 + 224 * 384 + 288 + 960,
        (1568 - 448) * 128,
    ),
    "lenet": (250 + 6250 + 40_000 + 1000, 0),
}


@pytest.mark.parametrize(("name", "steps", "width"), CASES)
def test_sizes(name: str, steps: int, width: int) -> None:
    small, more = PARAMETERS[name]
    count = sum(p.numel() for p in study.build(name, steps, width).parameters())
    single_only = name == "lenet" or steps > 1
    assert count == (small if single_only else small + more)
    assert study.build(name, steps, width)(torch.zeros(2, 1, 28, steps * width)).shape == (2, 10)


def test_only_the_gates_have_a_bias() -> None:
    for name, steps, width in CASES:
        biases = [key for key, _ in study.build(name, steps, width).named_parameters()
                  if "bias" in key]  # fmt: skip
        assert biases == (["gates.bias"] if "r_lstm" in name else [])


def test_first_weights() -> None:
    torch.manual_seed(0)
    for layer, inputs in ((dense(400, 300), 400), (convolution(24, 200, 5), 600)):
        spread = layer.weight.detach() * inputs**0.5
        assert spread.abs().max() <= 2
        # A normal distribution cut at 2: its standard deviation is 0.8796.
        assert abs(spread.std() - 0.8796) < 0.01
        assert abs(spread.mean()) < 0.01
    biased = dense(4, 3, bias=True)
    assert biased.bias is not None
    assert not biased.bias.any()


def test_pooling() -> None:
    maps = torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    # Half the sum of 1 2 4 5; on the edges twice the means of (3, 6), (7, 8), (9).
    close(HalfSumPool()(maps), torch.tensor([[[[6.0, 9], [15, 18]]]]))


def test_dropout_that_is_not_stationary() -> None:
    torch.manual_seed(0)
    like = torch.ones(50, 40)
    drop = Dropout().begin(like)
    first, second = drop(like), drop(like)
    assert sorted(first.unique().tolist()) == [0, 1.25]
    assert abs((first == 0).double().mean() - 0.2) < 0.04
    assert not torch.equal(first, second)


def test_stationary_dropout() -> None:
    torch.manual_seed(0)
    dropout, like = Dropout(stationary=True), torch.ones(50, 40)
    drop = dropout.begin(like)
    first = drop(like)
    assert torch.equal(drop(2 * like), 2 * first)
    assert sorted(first.unique().tolist()) == [0, 1.25]
    assert not torch.equal(dropout.begin(like)(like), first)
    steps = torch.ones(50, 12, 40)
    dropped = dropout.begin(steps[:, :1])(steps)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


@pytest.mark.parametrize("name", ["deep", "r_lstm", "r_lstm_sd", "shallow"])
def test_dropout_in_training_alone(name: str) -> None:
    model, x = network(name, *MAJORITY), images_of(*MAJORITY)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def strip(x: Tensor, step: int, width: int) -> Tensor:
    return x[:, 0, :, step * width : (step + 1) * width].flatten(1)


def relu_layer(x: Tensor, w: Tensor) -> Tensor:
    return torch.relu(x @ w.T)


def pooled(maps: Tensor) -> Tensor:
    """Half sums of windows of 2 x 2 over padding that repeats the edge: twice the valid mean."""
    odd = [maps.shape[3] % 2, maps.shape[2] % 2]
    return F.avg_pool2d(F.pad(maps, (0, odd[0], 0, odd[1]), mode="replicate"), 2) * 2


def features_by_hand(name: str, model: nn.Module, x: Tensor, steps: int, width: int) -> list:
    w = weights(model)
    found = []
    m = torch.zeros(len(x), 24, 28, width, dtype=x.dtype)
    n = torch.zeros(len(x), 32, 14, -(-width // 2), dtype=x.dtype)
    for step in range(steps):
        u = strip(x, step, width)
        if "conv" in name:
            image = u.reshape(-1, 1, 28, width)
            m = torch.cat([image, m], 1) if "plus" in name else image
            m = torch.relu(F.conv2d(m, w["features.conv1"], padding=2))
            n = torch.cat([pooled(m), n], 1) if "plus" in name else pooled(m)
            n = torch.relu(F.conv2d(n, w["features.conv2"], padding=1))
            u = relu_layer(pooled(n).flatten(1), w["features.input"])
        else:
            for number in range(2 if name == "deep_v2" else 1):
                u = relu_layer(u, w[f"features.layers.{number}"])
        found.append(u)
    return found


def logits_by_hand(name: str, model: nn.Module, x: Tensor, steps: int, width: int) -> Tensor:
    w = weights(model)
    if name == "lenet":
        for layer, padding in (("conv1", 2), ("conv2", 0), ("conv3", 0)):
            x = pooled(torch.relu(F.conv2d(x, w[layer], padding=padding)))
        return x.flatten(1) @ w["output"].T
    if name == "shallow":
        r = torch.zeros(len(x), 256, dtype=x.dtype)
        for step in range(steps):
            h = relu_layer(torch.cat([strip(x, step, width), r], 1), w["hidden"])
            r = relu_layer(h, w["recur"])
        return h @ w["output"].T
    features = features_by_hand(name, model, x, steps, width)
    if "lstm" in name:
        h = c = torch.zeros(len(x), len(w["candidate"]), dtype=x.dtype)
        for u in features:
            v = torch.cat([u, h], 1)
            i, f, o = (v @ w["gates"].T + w["gates.bias"]).sigmoid().tensor_split(3, 1)
            c = i * relu_layer(v, w["candidate"]) + f * c
            h = o * c
        return h @ w["output"].T
    r = torch.zeros(len(x), 256, dtype=x.dtype)
    for u in features:
        h = relu_layer(torch.cat([u, r], 1), w["hidden"])
        r = relu_layer(h, w["recur"])
    return relu_layer(h, w["out"]) @ w["output"].T


@pytest.mark.parametrize(("name", "steps", "width"), [*CASES, ("conv_plus_deep", 3, 5)])
def test_the_equations(name: str, steps: int, width: int) -> None:
    model, x = network(name, steps, width), images_of(steps, width)
    if "lstm" in name:
        nn.init.normal_(model.gates.bias)
    with torch.no_grad():
        close(model(x), logits_by_hand(name, model, x, steps, width), rtol=1e-11)


def explained(
    name: str, model: nn.Module, x: Tensor, kind: study.Kind, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Relevance of the greatest logit, and relu of that logit."""
    with torch.no_grad():
        logits = model(x)
    target = logits.argmax(1)
    explainer = relprop.Explainer(model, study.method(name, kind), backend=backend)
    return explainer(x, target=target), logits.gather(1, target[:, None])[:, 0].relu()


# By hand: the rules of a dense layer, as loops over the two signs.


def share(r: Tensor, contributions: Tensor, total: Tensor) -> Tensor:
    """Relevance `[n, out]` in proportion to contributions `[n, out, in]`; 0 where there is none."""
    ratio = torch.where(total == 0, 0.0, r / total)
    return (ratio[..., None] * contributions).sum(1)


def alpha_beta(a: Tensor, w: Tensor, r: Tensor, alpha: float, beta: float) -> Tensor:
    parts = a[:, None, :] * w
    plus, minus = parts.clamp(min=0), parts.clamp(max=0)
    total_plus, total_minus = plus.sum(2), minus.sum(2)
    alphas = torch.where(total_minus == 0, 1.0, alpha)
    betas = torch.where(total_plus == 0, -1.0, beta)
    if beta == 0:
        alphas, betas = torch.ones_like(alphas), torch.zeros_like(betas)
    return share(alphas * r, plus, total_plus) - share(betas * r, minus, total_minus)


def z_box(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    parts = x[:, None, :] * w + w.clamp(min=0) - w.clamp(max=0)
    return share(r, parts, parts.sum(2))


def joint(x: Tensor, h: Tensor, w: Tensor, r: Tensor, alpha: float, beta: float) -> list[Tensor]:
    wx, wh = w[:, : x.shape[1]], w[:, x.shape[1] :]
    box = x[:, None, :] * wx + wx.clamp(min=0) - wx.clamp(max=0)
    parts = h[:, None, :] * wh
    first = torch.cat([box, parts.clamp(min=0)], 2)
    second = torch.cat([torch.zeros_like(box), parts.clamp(max=0)], 2)
    empty = second.sum(2) == 0
    alphas, betas = torch.where(empty, 1.0, alpha), torch.where(empty, 0.0, beta)
    found = share(alphas * r, first, first.sum(2)) - share(betas * r, second, second.sum(2))
    return [found[:, : x.shape[1]], found[:, x.shape[1] :]]


def start(logits: Tensor) -> Tensor:
    greatest = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
    return (logits * greatest).relu()


def as_image(strips: list[Tensor], width: int) -> Tensor:
    return torch.cat([r.reshape(-1, 1, 28, width) for r in strips], 3)


RULES = [("deep_taylor", 1.0, 0.0), (LRP, 1.5, 0.5), (("lrp", 2.0, 1.0), 2.0, 1.0)]


@pytest.mark.parametrize(("kind", "alpha", "beta"), RULES)
def test_shallow_by_hand(kind: study.Kind, alpha: float, beta: float) -> None:
    model, x = network("shallow", 3, 4), images_of(3, 4)
    w = weights(model)
    states, hidden = [torch.zeros(3, 256, dtype=x.dtype)], []
    for step in range(3):
        both = torch.cat([strip(x, step, 4), states[-1]], 1)
        hidden.append(relu_layer(both, w["hidden"]))
        states.append(relu_layer(hidden[-1], w["recur"]))
    r = alpha_beta(hidden[2], w["output"], start(hidden[2] @ w["output"].T), alpha, beta)
    found: list[Tensor] = []
    for step in (2, 1, 0):
        pixels, state = joint(strip(x, step, 4), states[step], w["hidden"], r, alpha, beta)
        found.insert(0, pixels)
        if step:
            r = alpha_beta(hidden[step - 1], w["recur"], state, alpha, beta)
    close(explained("shallow", model, x, kind)[0], as_image(found, 4), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("kind", "alpha", "beta"), RULES)
def test_deep_by_hand(kind: study.Kind, alpha: float, beta: float) -> None:
    model, x = network("deep", 3, 4), images_of(3, 4)
    w = weights(model)
    u = [relu_layer(strip(x, step, 4), w["features.layers.0"]) for step in range(3)]
    states, hidden = [torch.zeros(3, 256, dtype=x.dtype)], []
    for step in range(3):
        hidden.append(relu_layer(torch.cat([u[step], states[-1]], 1), w["hidden"]))
        states.append(relu_layer(hidden[-1], w["recur"]))
    o = relu_layer(hidden[2], w["out"])
    r = alpha_beta(o, w["output"], start(o @ w["output"].T), alpha, beta)
    r = alpha_beta(hidden[2], w["out"], r, alpha, beta)
    found: list[Tensor] = []
    for step in (2, 1, 0):
        both = alpha_beta(torch.cat([u[step], states[step]], 1), w["hidden"], r, alpha, beta)
        found.insert(0, z_box(strip(x, step, 4), w["features.layers.0"], both[:, :256]))
        if step:
            r = alpha_beta(hidden[step - 1], w["recur"], both[:, 256:], alpha, beta)
    close(explained("deep", model, x, kind)[0], as_image(found, 4), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("kind", "alpha", "beta"), RULES)
def test_r_lstm_by_hand(kind: study.Kind, alpha: float, beta: float) -> None:
    """R_c += R_h; c_(t-1) takes f c_(t-1) / c_t of R_c, the candidate the rest; gates nothing."""
    model, x = network("r_lstm_sd", 3, 4), images_of(3, 4)
    w = weights(model)
    u = [relu_layer(strip(x, step, 4), w["features.layers.0"]) for step in range(3)]
    h = c = torch.zeros(3, 72, dtype=x.dtype)
    tape = []
    for step in range(3):
        v = torch.cat([u[step], h], 1)
        i, f, o = (v @ w["gates"].T + w["gates.bias"]).sigmoid().chunk(3, 1)
        kept = f * c
        c = i * relu_layer(v, w["candidate"]) + kept
        h = o * c
        tape.append((v, kept, c))
    r_h = alpha_beta(h, w["output"], start(h @ w["output"].T), alpha, beta)
    r_c = torch.zeros_like(r_h)
    found: list[Tensor] = []
    for step in (2, 1, 0):
        v, kept, c = tape[step]
        r_c = r_c + r_h
        fraction = torch.where(c == 0, 0.0, kept / c)
        r_v = alpha_beta(v, w["candidate"], (1 - fraction) * r_c, alpha, beta)
        r_c = fraction * r_c
        found.insert(0, z_box(strip(x, step, 4), w["features.layers.0"], r_v[:, :256]))
        r_h = r_v[:, 256:]
    close(explained("r_lstm_sd", model, x, kind)[0], as_image(found, 4), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["conv_deep", "conv_plus_deep", "conv_plus_r_lstm_sd", "shallow"])
def test_the_naive_oracle_agrees(name: str) -> None:
    model, x = network(name, 3, 5), images_of(3, 5, 2)
    found, _ = explained(name, model, x, LRP)
    close(found, explained(name, model, x, LRP, "reference")[0], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "steps", "width"),
    [(name, *sizes) for name, *sizes in CASES if "conv" not in name or sizes == [*SINGLE]]
    + [(name, 3, 7) for name in study.ARCHITECTURES if "conv" in name],
)
def test_relevance_is_conserved(name: str, steps: int, width: int) -> None:
    model, x = network(name, steps, width), images_of(steps, width)
    for kind in ("deep_taylor", ("lrp", 1.2, 0.2), LRP, ("lrp", 2, 1)):
        relevance, logit = explained(name, model, x, kind)
        assert (logit > 0).all()
        lost = (relevance.flatten(1).sum(1) - logit).abs()
        assert (lost <= 1e-4 * logit.clamp(min=1)).all()


def test_pixels_and_state_share_one_rule() -> None:
    for name in ("shallow", "conv_plus_deep", "conv_plus_r_lstm_sd"):
        model = network(name, 2, 4)
        explainer = relprop.Explainer(model, study.method(name, LRP))
        explainer(images_of(2, 4), target=0)
        path = "hidden" if name == "shallow" else "features.conv1"
        steps = explainer.plan.steps.values()
        rules = [s.rule for s in steps if s.node.path in (path, f"{path}@1")]
        assert len(rules) == 2
        for rule in rules:
            assert isinstance(rule, Joint)
            assert rule.channels == ((0, 112) if name == "shallow" else (0, 1))
            assert (rule.state.alpha, rule.state.beta, rule.state.conserve) == (1.5, 0.5, True)


def test_methods() -> None:
    assert study.method("deep", "deep_taylor").start == "relu"
    assert study.method("deep", LRP).start == "relu"
    assert study.method("deep", LRP).name == "lrp_alpha1.5_beta0.5"
    assert study.method("deep", "sensitivity").name == "sensitivity"
    with pytest.raises(InputError, match="'guess' is no method with rules; expected 'deep_taylor'"):
        study.composite("deep", "guess")
    with pytest.raises(InputError, match="expected alpha - beta = 1"):
        study.composite("deep", ("lrp", 2, 2))
    with pytest.raises(InputError, match="no architecture 'vgg'; there are shallow, deep"):
        study.composite("vgg", "deep_taylor")


def test_what_cannot_be_built() -> None:
    with pytest.raises(InputError, match="no architecture 'vgg'; there are shallow, deep"):
        study.build("vgg", 1, 28)
    with pytest.raises(InputError, match="lenet: 12 steps of width 7; it takes single images"):
        study.build("lenet", 12, 7)
    with pytest.raises(InputError, match="0 steps of width 28; expected both above 0"):
        study.build("deep", 0, 28)
    with pytest.raises(InputError, match=r"strips: images \[1, 1, 28, 85\] in 12 steps"):
        study.build("deep", 12, 7)(torch.zeros(1, 1, 28, 85))
    assert study.steps_and_width("mnist") == SINGLE
    assert study.steps_and_width("fashion_mnist_maj") == MAJORITY
    assert set(study.TITLES) == set(study.ARCHITECTURES)


def test_what_is_not_shipped() -> None:
    with pytest.raises(FileFormatError, match="Train them: relprop train conv_r_lstm mnist"):
        study.load("conv_r_lstm", "mnist")
    with pytest.raises(InputError, match="no task 'cifar'"):
        study.load("deep", "cifar")
