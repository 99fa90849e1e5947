"""The options for settings of methods are the methods' own settings."""

import argparse
import dataclasses

import pytest

from minipeft.arguments import COMPARED, EXIT_RULES, MAIN, RUNS, SETTINGS, STRATEGIES, add_method_settings, given_settings, sweep
from minipeft.arguments import METHODS as NAMES
from minipeft.compare import comparison
from minipeft.compare import exits, strategies
from minipeft.compare.run import OFFERED
from minipeft.methods import METHODS, RULES

# Settings without an option: they are no single value, or come from --words, or are for those who write programs.
WITHOUT = {"warmup", "final", "beta1", "beta2", "keeps_base", "rank_pattern", "alpha_pattern", "rank_stabilised", "words",
           "shift_positions", "importance"}


def settings_of(name):
    return {f.name for f in dataclasses.fields(OFFERED[name])}


def test_every_method_and_every_setting_is_on_offer():
    assert NAMES == tuple(METHODS) and RUNS == tuple(exits.OFFERED) and EXIT_RULES == tuple(RULES)
    assert STRATEGIES == tuple(strategies.STRATEGIES) and COMPARED == tuple(OFFERED)
    assert MAIN == comparison.MAIN
    for field, (having, _, _) in SETTINGS.items():
        assert set(having) == ({name for name in OFFERED if field in settings_of(name)}
                               - ({"pissa"} if field == "alpha" else set())), field
    assert set().union(*map(settings_of, OFFERED)) - set(SETTINGS) == WITHOUT & set().union(*map(settings_of, OFFERED))


def test_a_command_offers_the_settings_of_its_methods():
    parser = argparse.ArgumentParser()
    add_method_settings(parser)
    assert not hasattr(parser.parse_args([]), "looseness")
    parser = argparse.ArgumentParser()
    add_method_settings(parser, RUNS)
    assert given_settings(parser.parse_args("--looseness 0.5 --exit-rule margin".split())) == {
        "looseness": 0.5, "exit_rule": "margin"}
    parser = argparse.ArgumentParser()
    add_method_settings(parser, COMPARED, without=("by",))
    assert hasattr(parser.parse_args([]), "generations") and not hasattr(parser.parse_args([]), "by")


@pytest.mark.parametrize("text, expected", [
    ("lora.rank=1,2,4", ("lora.rank", [1, 2, 4])),
    ("lora.targets=q+v,q+k+v", ("lora.targets", ["q,v", "q,k,v"])),
    ("prefix.num-virtual-tokens=5", ("prefix.num_virtual_tokens", [5])),
    ("houlsby.train_norms=true,false", ("houlsby.train_norms", [True, False])),
    ("bitfit.terms=all,two", ("bitfit.terms", ["all", "two"])),
    ("prompt_based.by=lora,full", ("prompt_based.by", ["lora", "full"])),
    ("early_exit.looseness=0,0.5", ("early_exit.looseness", [0.0, 0.5])),
    ("full.lr=1e-4,1e-3", ("full.lr", [1e-4, 1e-3])),
])
def test_a_sweep(text, expected):
    assert sweep(text) == expected


@pytest.mark.parametrize("text, message", [
    ("lora.rank", "expected METHOD.SETTING=VALUE,VALUE,... as in lora.rank=1,2,4, got 'lora.rank'"),
    ("rank=1", "expected METHOD.SETTING=VALUE,VALUE,... as in lora.rank=1,2,4, got 'rank=1'"),
    ("lora.rank=", "expected METHOD.SETTING=VALUE,VALUE,... as in lora.rank=1,2,4, got 'lora.rank='"),
    ("lora.rank=1,,2", "expected a whole number of at least 1, got ''"),
    ("lora.rank=x", "expected a whole number of at least 1, got 'x'"),
    ("lora.bottleneck=2", "lora has the settings lr, rank, alpha, targets, dropout; got 'lora.bottleneck=2'"),
    ("doora.rank=2", f"expected a method among {', '.join(COMPARED)} before the dot, got 'doora.rank=2'"),
    ("bitfit.terms=three", "expected values among all, two, got 'bitfit.terms=three'"),
])
def test_a_sweep_that_is_none(text, message):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        sweep(text)
    assert str(caught.value) == message


def test_only_what_was_given_is_a_setting():
    parser = argparse.ArgumentParser()
    add_method_settings(parser)
    assert given_settings(parser.parse_args([])) == {}
    line = "--rank 3 --alpha 2.5 --targets q,v --train-norms --terms two --num-virtual-tokens 4"
    assert given_settings(parser.parse_args(line.split())) == {
        "rank": 3, "alpha": 2.5, "targets": "q,v", "train_norms": True, "terms": "two", "num_virtual_tokens": 4}


@pytest.mark.parametrize("line", ["--rank 0", "--alpha 0", "--dropout 1", "--terms three", "--bottleneck x", "--layers -1"])
def test_bad_values_are_refused(line, capsys):
    parser = argparse.ArgumentParser()
    add_method_settings(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(line.split())
    assert line.split()[0] in capsys.readouterr().err
