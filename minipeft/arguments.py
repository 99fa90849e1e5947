"""The types of command-line options, and the options that are settings of methods: one option for each setting.

A method's settings are the fields of its dataclass; a test holds the table here against them.
"""

import argparse
import math
import re


def whole(least):
    """The type of an option that is a whole number of at least ``least``."""
    def read(text):
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)
    return read


def four_bits(text):
    """The type of an option that asks for 4 bits."""
    if text != "4":
        raise argparse.ArgumentTypeError(f"expected 4, got {text!r}; left out, weights stay as they are")
    return 4


def number(words, good):
    """The type of an option that is a real number for which ``good`` holds; ``words`` describe it."""
    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and good(value)):
            raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}")
        return value
    return read


ABOVE_0 = number("a number above 0", lambda value: value > 0)
FROM_0 = number("a number of 0 or more", lambda value: value >= 0)
FROM_1 = number("a number of 1 or more", lambda value: value >= 1)
SHARE = number("a share from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = number("a number from 0 to below 1", lambda value: 0 <= value < 1)
UP_TO_1 = number("a number above 0, up to 1", lambda value: 0 < value <= 1)

# These are here so that help needs no NumPy; tests hold them against what they name.
TASKS = ("classify", "lm", "seq2seq")
METRICS = ("accuracy", "f1", "matthews", "bleu", "rouge_l", "exact")
EXIT_RULES = ("entropy", "margin", "patience")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")
METHODS = (
    "full", "head", "top_k", "bitfit", "layernorm", "random_mask", "fisher_mask", "lora", "rslora", "lora_plus", "dora", "pissa",
    "adalora", "ia3", "houlsby", "pfeiffer", "parallel", "compacter", "prefix", "prompt", "task_embedding", "output")
RUNS = (*METHODS, "early_exit")  # what finetune runs; early exit is no method that attaches to a seam alone
STRATEGIES = ("zero_shot", "in_context", "prompt_based", "pet", "ipet")  # classifying by prompting, with few labels or none
COMPARED = (*RUNS, *STRATEGIES)  # what compare runs
MAIN = ("full", "head", "top_k", "bitfit", "ia3", "lora", "houlsby", "prefix", "prompt", "early_exit")  # of a comparison
LORAS, ADAPTERS = ("lora", "rslora", "lora_plus", "dora", "adalora", "pissa"), ("houlsby", "pfeiffer", "parallel", "compacter")
PROMPTS = ("prefix", "prompt")

# Settings of methods that the command line offers: {field: (methods that have it, type, what it is)}; no type: a switch.
SETTINGS = {
    "rank": (LORAS, whole(1), "rank of the change of a matrix"),
    "alpha": (LORAS[:-1], ABOVE_0, "the change is scaled by alpha / rank"),
    "targets": ((*LORAS, "ia3", *ADAPTERS), str, "patterns of the places to act on, separated by commas"),
    "feedforward": (("ia3",), str, "patterns of the maps whose input is scaled"),
    "dropout": ((*LORAS, *ADAPTERS), BELOW_1, "dropout on the way to the method's own matrices"),
    "lr_ratio": (("lora_plus",), ABOVE_0, "how many times U's learning rate is V's"),
    "detach_norm": (("dora",), None, "treat the lengths of columns as constants in the backward pass"),
    "target_rank": (("adalora",), whole(1), "average rank of a matrix at the end"),
    "orthogonality": (("adalora",), FROM_0, "weight of the penalty that keeps directions orthogonal"),
    "interval": (("adalora",), whole(1), "steps between two choices of what stays"),
    "layers": (("top_k",), whole(1), "how many of the last layers are trained"),
    "terms": (("bitfit",), ("all", "two"), "which biases: all, or those of the queries and of the feed-forward's first map"),
    "add_zero_biases": (("bitfit",), None, "give a model without biases zero ones to train"),
    "share": (("random_mask", "fisher_mask"), UP_TO_1, "share of the entries of the blocks' maps that is trained"),
    "examples": (("fisher_mask",), whole(1), "training examples over which the Fisher information is averaged"),
    "bottleneck": (ADAPTERS, whole(1), "width of the bottleneck"),
    "activation": (ADAPTERS, ("relu", "gelu", "silu", "tanh"), "activation in the bottleneck"),
    "scale": (ADAPTERS, ABOVE_0, "what multiplies the adapter's output"),
    "initial_std": (ADAPTERS, FROM_0, "standard deviation with which the adapter's last matrix starts; 0: at zero"),
    "num_factors": (("compacter",), whole(1), "number of Kronecker products in a sum; it divides the width and the bottleneck"),
    "train_norms": (ADAPTERS, None, "train the norms as well"),
    "num_virtual_tokens": (PROMPTS, whole(1), "how many virtual tokens"),
    "initial": (PROMPTS, ("random", "words", "vocabulary", "labels"), "how the virtual tokens start"),
    "reparametrise": (("prefix",), None, "make the prefix by a small network while training"),
    "hidden": (("prefix",), whole(1), "width of that network"),
    "exit_weights": (("early_exit",), ("depth", "equal"), "what each exit's loss counts for in training"),
    "exit_rule": (("early_exit",), EXIT_RULES, "when an example leaves"),
    "looseness": (("early_exit",), SHARE, "how readily: 0 never early, 1 at the first exit"),
    "part": (("output",), ("embedding", "bias"), "what is trained for each label"),
    "by": (("prompt_based", "pet", "ipet"), METHODS, "the method that trains (default: full)"),
    "calibrate": (("zero_shot", "in_context"), None, "divide out the answers to a text without content"),
    "ranking": (("zero_shot", "in_context", "prompt_based"), None, "classify by the probability of the class's whole answer"),
    "per_class": (("in_context",), whole(0), "solved examples of each class before a text, 0 for all"),
    "sets": (("in_context", "prompt_based"), whole(1), "sets of solved examples that a prediction is averaged over "
                                                       "(prompt_based: with --demonstrations)"),
    "similar": (("in_context", "prompt_based"), None, "draw solved examples from the half that is most similar to the text "
                                                      "(prompt_based: with --demonstrations)"),
    "demonstrations": (("prompt_based",), whole(0), "solved examples of each class before a text"),
    "weighted": (("pet", "ipet"), None, "weigh prompts by their accuracy before training"),
    "pair_steps": (("pet", "ipet"), whole(1), "steps in the training of each prompt"),
    "pair_models": (("pet", "ipet"), whole(1), "models of each prompt, which differ by a seed"),
    "generations": (("ipet",), whole(0), "how many generations, 0 for as many as lead to 1,000 labelled texts"),
}


def sweep(text):
    """The type of an option that sweeps a setting: ``lora.rank=1,2,4`` -> ("lora.rank", [1, 2, 4]).

    In a value that is a list of patterns, + stands for the comma: ``lora.targets=q+v,q+k+v``.
    """
    name, equals, values = text.partition("=")
    method, dot, field = name.partition(".")
    if not equals or not dot or not values:
        raise argparse.ArgumentTypeError(f"expected METHOD.SETTING=VALUE,VALUE,... as in lora.rank=1,2,4, got {text!r}")
    field = field.replace("-", "_")
    having, kind, _ = SETTINGS.get(field, (COMPARED, ABOVE_0, "")) if field == "lr" else SETTINGS.get(field, ((), str, ""))
    if method not in COMPARED or method not in having:
        known = ["lr", *(f for f, (methods, _, _) in SETTINGS.items() if method in methods)]
        raise argparse.ArgumentTypeError(f"{method} has the settings {', '.join(known)}; got {text!r}" if method in COMPARED else
                                         f"expected a method among {', '.join(COMPARED)} before the dot, got {text!r}")
    return f"{method}.{field}", [_value(kind, part, text) for part in values.split(",")]


def _value(kind, part, text):
    """One value of a sweep."""
    if kind is None:
        kind = ("true", "false")
    if isinstance(kind, tuple):
        if part not in kind:
            raise argparse.ArgumentTypeError(f"expected values among {', '.join(kind)}, got {text!r}")
        return {"true": True, "false": False}.get(part, part)
    return part.replace("+", ",") if kind is str else kind(part)


def add_method_settings(parser, methods=METHODS, without=()):
    """Add an option for every setting of some methods, but for those that a command has under another name."""
    group = parser.add_argument_group("settings of methods (left out, each method has its own default)")
    for field, (having, kind, words) in SETTINGS.items():
        if not set(having) & set(methods) or field in without:
            continue
        text, flag = f"{', '.join(having)}: {words}", "--" + field.replace("_", "-")
        if kind is None:
            group.add_argument(flag, action="store_const", const=True, help=text)
        elif isinstance(kind, tuple):
            group.add_argument(flag, choices=kind, help=text)
        else:
            group.add_argument(flag, type=kind, help=text)
    group.add_argument("--words", metavar="TEXT", help="prefix, prompt: start the virtual tokens from these words; output: "
                                                       "label words")


def given_settings(args):
    """{field: value} of the settings that were given."""
    return {field: getattr(args, field) for field in SETTINGS if getattr(args, field, None) is not None}
