"""The options for settings of methods are the methods' own settings."""

import argparse
import dataclasses

import pytest

from minipeft.arguments import METHODS as NAMES
from minipeft.arguments import SETTINGS, add_method_settings, given_settings
from minipeft.methods import METHODS

# Settings without an option: they are no single value, or come from --words, or are for those who write programs.
WITHOUT = {"warmup", "final", "beta1", "beta2", "keeps_base", "rank_pattern", "alpha_pattern", "rank_stabilised", "words", "shift_positions", "importance"}


def settings_of(name):
    return {f.name for f in dataclasses.fields(METHODS[name])}


def test_every_method_and_every_setting_is_on_offer():
    assert NAMES == tuple(METHODS)
    for field, (having, _, _) in SETTINGS.items():
        assert set(having) == {name for name in METHODS if field in settings_of(name)} - ({"pissa"} if field == "alpha" else set()), field
    assert set().union(*map(settings_of, METHODS)) - set(SETTINGS) == WITHOUT & set().union(*map(settings_of, METHODS))


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
