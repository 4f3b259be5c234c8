"""Composites: precedence, selectors, presets, names, messages."""

import pickle
import re

import pytest
import torch
from torch import nn

import relprop
from relprop.composites import (
    PRESETS,
    Composite,
    LayerInfo,
    alpha_beta,
    deep_taylor,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    from_name,
    uniform,
)
from relprop.errors import InputError, PlanningError
from relprop.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Joint,
    Norm,
    Pass,
    Product,
    Recurrent,
    WSquare,
    ZBox,
    ZPlus,
)


class Block(nn.Module):
    """Stands for a module whose forward holds an addition."""


def layer(kind, path, *types, first=False):
    return LayerInfo(kind, path, types, first)


CONV1 = layer("conv", "features.0", nn.Conv2d, nn.Sequential, first=True)
RELU = layer("activation", "features.1", nn.ReLU, nn.Sequential)
POOL = layer("max_pool", "features.2", nn.MaxPool2d, nn.Sequential)
CONV2 = layer("conv", "features.3", nn.Conv2d, nn.Sequential)
UP = layer("conv_transpose", "decoder.up", nn.ConvTranspose2d)
ADD = layer("add", "block", Block)
AVG = layer("avg_pool", "pool", nn.AdaptiveAvgPool2d)
FC = layer("linear", "classifier.0", nn.Linear, nn.Sequential)
NETWORK = [CONV1, RELU, POOL, CONV2, UP, ADD, AVG, FC]


def test_rules_apply_in_order_and_silence_is_none():
    composite = Composite([("features.3", Gamma()), ("conv", ZPlus()), ("linear", Epsilon(0.1))])
    assert composite.assign(NETWORK) == [
        ZPlus(), None, None, Gamma(), ZPlus(), None, None, Epsilon(0.1),
    ]  # fmt: skip


def test_conv_includes_transposed_but_not_the_other_way_round():
    assert Composite([("conv", Flat())]).assign([CONV2, UP]) == [Flat(), Flat()]
    assert Composite([("conv_transpose", Flat())]).assign([CONV2, UP]) == [None, Flat()]


def test_precedence_with_rule_last_first_then_first_then_rules():
    base = Composite([("conv", ZPlus())], first=Flat())
    assert base.assign([CONV1, CONV2]) == [Flat(), ZPlus()]
    once = base.with_rule("conv", Gamma())
    assert once.assign([CONV1, CONV2]) == [Gamma(), Gamma()]
    twice = once.with_rule("features.0", Epsilon())
    assert twice.assign([CONV1, CONV2]) == [Epsilon(), Gamma()]
    assert once.with_rule("conv", WSquare()).assign([CONV2, CONV1]) == [WSquare(), WSquare()]
    assert base.assign([CONV1, CONV2]) == [Flat(), ZPlus()]


def test_first_reaches_every_first_linear_layer_and_nothing_else():
    layers = [
        layer("linear", "a", first=True),
        layer("conv", "b", first=True),
        layer("conv_transpose", "c", first=True),
        layer("activation", "d", first=True),
        layer("recurrent", "e", first=True),
        layer("linear", "f"),
    ]
    expected = [ZBox(0, 1)] * 3 + [None] * 3
    assert Composite(first=ZBox(0, 1)).assign(layers) == expected
    assert Composite(pixel=(0, 1)).assign(layers) == expected


def test_first_by_kind_leaves_other_kinds_to_their_rule():
    composite = Composite([("linear", Epsilon())], first={"conv": Flat()})
    layers = [
        layer("conv", "a", first=True),
        layer("linear", "b", first=True),
        layer("conv_transpose", "c", first=True),
    ]
    assert composite.assign(layers) == [Flat(), Epsilon(), Flat()]
    apart = Composite(first={"conv": Flat(), "conv_transpose": WSquare()})
    assert apart.assign(layers) == [Flat(), None, WSquare()]


def test_pixel_is_short_for_first():
    assert Composite(pixel=(-1, 1)) == Composite(first=ZBox(-1, 1))
    with pytest.raises(ValueError, match="both first and pixel"):
        Composite(first=Flat(), pixel=(0, 1))
    with pytest.raises(InputError, match=r"pixel is 3; expected \(low, high\)"):
        Composite(pixel=3)


def test_first_without_a_first_layer_is_an_error():
    with pytest.raises(PlanningError, match="no linear layer or convolution is reached") as error:
        epsilon_plus_flat().assign([layer("embedding", "e"), FC])
    assert "'epsilon_plus_flat'" in str(error.value)


@pytest.mark.parametrize(
    ("glob", "chosen"),
    [
        ("features.*", [True, False, False, True, False, False, False, False]),
        ("*.0", [True, False, False, False, False, False, False, True]),
        ("features.[03]", [True, False, False, True, False, False, False, False]),
        ("*", [True, False, False, True, True, False, False, True]),
        ("d*up", [False, False, False, False, True, False, False, False]),
        ("path:classifier.?", [False, False, False, False, False, False, False, True]),
    ],
)
def test_globs_cross_dots_and_skip_kinds_the_rule_does_not_fit(glob, chosen):
    assigned = Composite([(glob, Gamma())]).assign(NETWORK)
    assert [rule == Gamma() for rule in assigned] == chosen


def test_globs_match_the_full_path_and_case():
    with pytest.raises(PlanningError):
        Composite([("features", Gamma())]).assign(NETWORK)
    with pytest.raises(PlanningError):
        Composite([("Features.0", Gamma())]).assign(NETWORK)


def test_path_forces_a_path_where_a_module_is_called_like_a_kind():
    layers = [layer("linear", "head"), layer("linear", "conv"), layer("conv", "stem")]
    assert Composite([("conv", Flat())]).assign(layers) == [None, None, Flat()]
    assert Composite([("path:conv", Flat())]).assign(layers) == [None, Flat(), None]


def test_a_repeated_call_is_matched_by_both_paths():
    layers = [layer("linear", "f"), layer("linear", "f@1"), layer("linear", "f@12")]
    assert Composite([("f", Flat())]).assign(layers) == [Flat()] * 3
    assert Composite([("f@1", Flat())]).assign(layers) == [None, Flat(), None]
    assert Composite([("f@*", Flat())]).assign(layers) == [None, Flat(), Flat()]


def test_a_class_matches_subclasses_of_the_innermost_module_only():
    class MyConv(nn.Conv2d):
        pass

    layers = [layer("conv", "a", MyConv, Block), layer("conv", "b", nn.Conv2d), ADD, UP]
    assert Composite([(nn.Conv2d, Flat())]).assign(layers) == [Flat(), Flat(), None, None]
    assert Composite([(MyConv, Flat())]).assign(layers) == [Flat(), None, None, None]
    assert Composite([(Block, Norm(0.1))]).assign(layers) == [None, None, Norm(0.1), None]


def test_an_unknown_word_is_a_path_and_other_kinds_take_simple_rules():
    norm = layer("layer_norm", "encoder.ln", nn.LayerNorm)
    assert Composite([("encoder.ln", Pass())]).assign([norm]) == [Pass()]
    assert Composite([(nn.LayerNorm, Epsilon())]).assign([norm]) == [Epsilon()]
    with pytest.raises(PlanningError, match="layer_norm takes Pass or Norm or Epsilon"):
        Composite([("encoder.ln", Flat())]).assign([norm])
    with pytest.raises(PlanningError, match="'layer_norm' matches no layer"):
        Composite([("layer_norm", Pass())]).assign([norm])


def test_an_overridden_selector_still_counts_as_matched():
    composite = Composite([("conv", ZPlus()), ("features.3", Gamma())]).with_rule("conv", Flat())
    assert composite.assign([CONV2]) == [Flat()]


@pytest.mark.parametrize("build", ["rules", "with_rule"])
def test_a_selector_that_matches_nothing_names_near_ones(build):
    def composite(selector):
        pair = (selector, Flat())
        return Composite([pair]) if build == "rules" else Composite().with_rule(*pair)

    with pytest.raises(PlanningError, match=r"'feature\.3' matches no layer.*features\.3"):
        composite("feature.3").assign(NETWORK)
    with pytest.raises(PlanningError, match=r"'convv' matches no layer.*Near it: conv"):
        composite("convv").assign(NETWORK)
    with pytest.raises(PlanningError, match=r"selector Conv1d matches no layer.*Near it: Conv2d"):
        composite(nn.Conv1d).assign(NETWORK)
    with pytest.raises(PlanningError, match=r"'mul' matches no layer"):
        composite("mul").assign(NETWORK)
    with pytest.raises(PlanningError, match=r"none here"):
        composite("conv").assign([])


@pytest.mark.parametrize(
    ("selector", "rule", "words"),
    [
        ("add", Flat(), ["'block' (add)", "add takes Norm", "Flat("]),
        ("activation", ZPlus(), ["'features.1' (activation)", "activation takes Pass"]),
        ("avg_pool", Pass(), ["'pool' (avg_pool)", "avg_pool takes Norm"]),
        ("conv", Norm(), ["'features.0' (conv)", "conv takes a rule of linear maps", "or Pass"]),
        ("max_pool", Pass(), ["'features.2' (max_pool)", "takes no rule"]),
        ("features.1", Product(), ["'features.1' (activation)"]),
        (nn.Linear, Recurrent(), ["selector Linear", "'classifier.0' (linear)"]),
    ],
)
def test_a_rule_that_fits_nothing_it_is_given_to_is_an_error(selector, rule, words):
    with pytest.raises(PlanningError) as error:
        Composite([(selector, rule)], name="mine").assign(NETWORK)
    for word in ["Composite 'mine'", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("linear", Pass()),
        ("conv", Joint()),
        ("activation", Pass()),
        ("add", Norm(1e-3)),
        ("mul", Product("left")),
        ("avg_pool", Norm()),
        ("batch_norm", Pass()),
        ("batch_norm", ZPlus()),
        ("recurrent", Recurrent("prop")),
    ],
)
def test_rules_that_fit_their_kind(kind, rule):
    assert Composite([(kind, rule)]).assign([layer(kind, "x")]) == [rule]


def test_a_linear_rule_on_a_recurrent_layer_becomes_its_candidates_rule():
    lstm = layer("recurrent", "lstm", nn.LSTM)

    def assigned(rule):
        return Composite([("recurrent", rule)]).assign([lstm])[0]

    assert assigned(Epsilon(1e-3)) == Recurrent(epsilon=1e-3)
    assert assigned(ZPlus(1e-4)) == Recurrent(epsilon=1e-4, rule=ZPlus(1e-4))
    no_bias = Epsilon(1e-3, zero_params="bias")
    assert assigned(no_bias) == Recurrent(epsilon=1e-3, rule=no_bias)


def test_equal_hashable_picklable_and_immutable():
    low = torch.tensor([-1.0, -2.0, -3.0]).reshape(3, 1, 1)

    def build():
        return Composite([("conv", ZPlus()), (nn.Linear, Epsilon())], pixel=(low, 1.0)).with_rule(
            "head", Flat()
        )

    assert build() == build() and hash(build()) == hash(build())
    assert pickle.loads(pickle.dumps(build())) == build()
    assert {build(): 1}[build()] == 1
    assert build() != build().with_rule("head", Flat())
    assert Composite([("conv", ZPlus())]) != Composite([("conv", ZPlus(1e-5))])
    assert Composite(stabilizer=1e-3) != Composite()
    assert Composite(name="a") == Composite(name="b")
    with pytest.raises(AttributeError):
        build().stabilizer = 1.0


def test_a_list_given_as_rules_may_change_afterwards():
    pairs = [("conv", ZPlus())]
    composite = Composite(pairs)
    pairs.append(("linear", Flat()))
    assert composite == Composite([("conv", ZPlus())])


def test_repr_can_be_evaluated_for_numbers():
    composite = Composite(
        [("conv", Gamma(0.5))], first={"conv": Flat()}, stabilizer=1e-3, name="mine"
    ).with_rule("head", AlphaBeta(2, 1, conserve=True))
    assert eval(repr(composite)) == composite
    assert repr(Composite()) == "Composite()"
    assert "(Conv2d, " in repr(Composite([(nn.Conv2d, Flat())]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rules": [("conv", ZPlus)]}, r"ZPlus.*write ZPlus\(\.\.\.\)"),
        ({"rules": [("conv", "zplus")]}, "'zplus' is not a rule"),
        ({"rules": [(3, ZPlus())]}, "selector 3 is neither a kind"),
        ({"rules": [("", ZPlus())]}, "selector '' is neither"),
        ({"rules": [(int, ZPlus())]}, "neither a kind"),
        ({"rules": {"conv": ZPlus()}}, r"got 'conv'; expected \(selector, rule\) pairs"),
        ({"rules": [("conv", ZPlus(), 1)]}, "expected .selector, rule. pairs"),
        ({"first": Norm()}, "first: Norm.*a linear layer takes"),
        ({"first": "flat"}, "'flat' is not a rule"),
        ({"first": {"add": Flat()}}, "kind 'add'; expected linear, conv"),
        ({"first": {"conv": Norm()}}, "'conv' is given Norm"),
        ({"defaults": [("convolution", Flat())]}, "kind 'convolution'; expected linear"),
        ({"stabilizer": -1.0}, "stabilizer is -1.0; expected a finite number >= 0"),
        ({"stabilizer": float("nan")}, "stabilizer is nan"),
        ({"stabilizer": True}, "stabilizer is True"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        Composite(**arguments)


def test_epsilon_plus_and_flat():
    chosen = epsilon_plus(epsilon=0.1, stabilizer=0.2, zero_params=["bias"]).assign(NETWORK)
    conv, linear = ZPlus(0.2, "bias"), Epsilon(0.1, "bias")
    assert chosen == [conv, None, None, conv, conv, None, None, linear]
    assert epsilon_plus(stabilizer=0.2).stabilizer == 0.2
    flat = epsilon_plus_flat(stabilizer=0.2).assign(NETWORK)
    assert flat == [Flat(0.2), None, None, ZPlus(0.2), ZPlus(0.2), None, None, Epsilon()]
    mlp = [layer("linear", "0", first=True), layer("linear", "1")]
    assert epsilon_plus_flat().assign(mlp) == [Flat(), Epsilon()]
    assert epsilon_plus().assign(mlp) == [Epsilon(), Epsilon()]


def test_epsilon_alpha2_beta1_and_flat():
    conv = AlphaBeta(2, 1)
    chosen = from_name("epsilon_alpha2_beta1").assign(NETWORK)
    assert chosen == [conv, None, None, conv, conv, None, None, Epsilon()]
    assert from_name("epsilon_alpha2_beta1_flat").assign(NETWORK) == [Flat(), *chosen[1:]]


def test_epsilon_gamma_box_boxes_convolutions_only():
    composite = epsilon_gamma_box(-2.0, 3.0, epsilon=0.1, gamma=0.5, stabilizer=0.2)
    gamma, box = Gamma(0.5, 0.2), ZBox(-2.0, 3.0, 0.2)
    assert composite.assign(NETWORK) == [box, None, None, gamma, gamma, None, None, Epsilon(0.1)]
    mlp = [layer("linear", "0", first=True), layer("linear", "1")]
    assert composite.assign(mlp) == [Epsilon(0.1)] * 2


def test_excitation_backprop():
    rule = ZPlus(0.1, "bias")
    chosen = from_name("excitation_backprop", stabilizer=0.1, zero_params="bias").assign(NETWORK)
    assert chosen == [rule, None, None, rule, rule, None, None, rule]


def test_the_seeds_lrp_and_deep_taylor():
    rule = AlphaBeta(2, 1, conserve=True)
    expected = [ZBox(-1, 1), None, None, rule, rule, None, None, rule]
    assert alpha_beta(2, 1).assign(NETWORK) == expected
    assert alpha_beta(2, 1, pixel=None).assign(NETWORK) == [rule, *expected[1:]]
    taylor = deep_taylor(0.0, 1.0).assign(NETWORK)
    rule = AlphaBeta(1, 0)
    assert taylor == [ZBox(0, 1), None, None, rule, rule, None, None, rule]


def test_uniform():
    lstm = layer("recurrent", "lstm")
    assert uniform(Gamma()).assign([CONV1, RELU, FC, lstm]) == [Gamma(), None, Gamma(), None]
    composite = uniform(Epsilon(0.25))
    assert composite.stabilizer == 0.25
    assert composite.assign([CONV1, FC, lstm]) == [
        Epsilon(0.25), Epsilon(0.25), Recurrent(epsilon=0.25),
    ]  # fmt: skip
    assert uniform(Epsilon(0)).stabilizer == 0
    assert uniform(ZPlus(0.25)).stabilizer == 1e-6
    recurrent = Recurrent("half", epsilon=0.5)
    assert uniform(recurrent).assign([FC, lstm]) == [Epsilon(0.5), recurrent]
    assert uniform(Pass()).assign([FC]) == [Pass()]
    with pytest.raises(InputError, match=r"uniform: Norm.*a linear layer takes"):
        uniform(Norm())


@pytest.mark.parametrize(
    ("name", "options", "rule", "stabilizer"),
    [
        ("lrp_zero", {}, Epsilon(0), 0.0),
        ("lrp_epsilon", {"epsilon": 0.5}, Epsilon(0.5), 0.5),
        ("lrp_gamma", {"gamma": 0.5, "stabilizer": 0.1}, Gamma(0.5, 0.1), 0.1),
        ("lrp_zplus", {"zero_params": "bias"}, ZPlus(zero_params="bias"), 1e-6),
        ("lrp_w_square", {}, WSquare(), 1e-6),
        ("lrp_flat", {}, Flat(), 1e-6),
        ("lrp_alpha2_beta1", {}, AlphaBeta(2, 1), 1e-6),
        ("lrp_alpha1_beta0", {}, AlphaBeta(1, 0), 1e-6),
        ("lrp_alpha1.4_beta0.4", {"stabilizer": 0.1}, AlphaBeta(1.4, 0.4, 0.1), 0.1),
        ("lrp_alpha2.2_beta1.2", {}, AlphaBeta(2.2, 1.2), 1e-6),
    ],
)
def test_uniform_presets_by_name(name, options, rule, stabilizer):
    composite = from_name(name, **options)
    assert composite.assign([CONV1, RELU, UP, FC]) == [rule, None, rule, rule]
    assert composite.stabilizer == stabilizer
    assert composite.name == name


def test_every_preset_knows_its_name():
    for name, preset in PRESETS.items():
        needs_box = name in ("epsilon_gamma_box", "deep_taylor")
        composite = preset(low=0, high=1) if needs_box else preset()
        assert composite.name == name
        assert from_name(name, **({"low": 0, "high": 1} if needs_box else {})) == composite
        assert pickle.loads(pickle.dumps(composite)) == composite


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("epsilon_pluss", {}, r"Unknown composite 'epsilon_pluss'; near it: epsilon_plus"),
        ("zzz", {}, r"Unknown composite 'zzz'; expected one of epsilon_plus"),
        ("epsilon_gamma_box", {}, r"needs low and high.*method_options=\{'low': "),
        ("deep_taylor", {"low": 0}, r"deep_taylor: it needs high"),
        ("epsilon_plus", {"eps": 1}, r"unknown option 'eps'; did you mean 'epsilon'.*stabilizer"),
        ("lrp_alpha2_beta1", {"pixel": 1}, r"unknown option 'pixel'.*stabilizer, zero_params"),
        ("lrp_alpha2_beta2", {}, r"lrp_alpha2_beta2: .*expected alpha - beta = 1"),
        ("lrp_alpha0.5_beta0", {}, r"alpha is 0.5"),
        ("epsilon_plus", {"epsilon": -1}, r"epsilon_plus: .*epsilon is -1"),
        ("epsilon_plus", {"zero_params": ["weight"]}, r"zero_params is \['weight'\]"),
        ("epsilon_gamma_box", {"low": 1, "high": 0}, r"low exceeds high"),
        ("epsilon_gamma_box", {"low": "a", "high": 0}, r"epsilon_gamma_box: "),
    ],
)
def test_names_and_options_that_do_not_exist(name, options, words):
    with pytest.raises(InputError, match=words) as error:
        from_name(name, **options)
    assert re.search(r"\S", str(error.value))


def test_a_rule_for_the_first_layer_of_a_network_without_layers() -> None:
    """Poolings alone: the rule has no use, the explanation is that of the others."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    x = torch.rand(2, 1, 4, 4)
    found = relprop.explain(network, x, target=1, method=Composite(pixel=(0.0, 1.0)))
    assert torch.equal(found, relprop.explain(network, x, target=1, method=Composite()))
