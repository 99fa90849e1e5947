"""The trainable-parameter counts that papers print, each computed from its model's shape and its method's own formula.

Only what a paper trains, and where, stands here: no figure that it prints. Most rows are a method with its settings. Where a
paper places things otherwise than any setting does, a function of its own says with its source what is to be added to the
method's own count, or taken from it. ``misprint`` says in words why what a paper prints is not what its own setting gives, and
then our count is the one of the setting.

Sources: [LoRA] Hu et al., ICLR 2022, arXiv:2106.09685, tables 2, 3, 4 and 15, sections 5.1 and D.4; [Houlsby] Houlsby et al.,
ICML 2019, arXiv:1902.00751, section 3; [Prompt] Lester, Al-Rfou, Constant, EMNLP 2021, arXiv:2104.08691, table 4;
[T-Few] Liu et al., NeurIPS 2022, arXiv:2205.05638, table 4, and the configurations released with it; [BitFit] Ben Zaken,
Ravfogel, Goldberg, ACL 2022, arXiv:2106.10199, table 1.
"""

from dataclasses import dataclass

from ..methods import METHODS
from ..methods.shapes import join_paths, linear_shapes
from . import plan
from .plan_models import load_shape


@dataclass(frozen=True)
class Published:
    """One figure of a paper: where it stands, the model and what is trained, how it is computed, and why it is misprinted.

    ``unit`` is ``parameters``, ``%`` of the pre-trained model, or ``MiB`` of float32.
    """

    paper: str
    model: str
    what: str
    compute: object
    unit: str = "parameters"
    misprint: str = ""

    def value(self):
        """The number, computed."""
        return self.compute(load_shape(self.model))


# ---- formulas ----------------------------------------------------------------------------------------------------


def trained(name, **settings):
    """A method as it is here: its own count, without a head."""
    return lambda shape: plan.count(METHODS[name](**settings), shape)


def total(name, **settings):
    """The pre-trained model and what a method adds."""
    return lambda shape: shape.pretrained + plan.count(METHODS[name](**settings), shape)


def together(*parts):
    """The sum of several of these."""
    return lambda shape: sum(part(shape) for part in parts)


def share(part):
    """In per cent of the pre-trained model."""
    return lambda shape: 100 * part(shape) / shape.pretrained


def with_norms(part):
    """T-Few trains the norms along with LoRA, adapters and BitFit (its configurations name them beside)."""
    return together(part, trained("layernorm"))


def pre_embed(first, last):
    """Prefix-embedding tuning: so many vectors before and after the words, d (l_p + l_i) [LoRA, section 5.1]."""
    return trained("prompt", num_virtual_tokens=first + last, shift_positions=False)


def pre_layer(first, last):
    """Prefix-layer tuning: the states of those places are replaced behind every block, L d (l_p + l_i) [LoRA, section 5.1].

    One vector for each place and block, half of a prefix, which has a key and a value.
    """
    return lambda shape: plan.count(METHODS["prefix"](num_virtual_tokens=first + last), shape) // 2


def adapter_l(bottleneck):
    """One adapter a block behind the feed-forward and a LayerNorm that is trained, L (2 d r + r + d) + 2 d L [LoRA, section 5.1].

    After Lin, Madotto, Fung, Findings of EMNLP 2020. No row below uses it: the paper names no r for it.
    """
    return lambda shape: (plan.count(METHODS["pfeiffer"](bottleneck=bottleneck), shape)
                          + 2 * shape.config.hidden_size * shape.config.num_hidden_layers)


def bitfit_in_blocks(shape):
    """BitFit without the biases outside the blocks, which are the final norm's: 11 d a block at f = 4 d [LoRA, table 4]."""
    return plan.count(METHODS["bitfit"](), shape) - shape.config.hidden_size


def bitfit_and_pooler(shape):
    """All biases, the pooler's among them [BitFit]."""
    return METHODS["bitfit"]().count(shape.config.with_(pooling="pooler"))


def block_and_pooler(shape):
    """The top block and the pooler above it, which is trained with it [Houlsby, section 3.2]."""
    width = shape.config.hidden_size
    return plan.count(METHODS["top_k"](layers=1), shape) + width * width + width


def t_few_biases(shape):
    """A bias for every map but the feed-forward's last [T-Few, bitfit.json]: its pattern is w_o, and T5's map is called wo."""
    last = sum(d_out for path, (_, d_out) in linear_shapes(shape.config).items() if path.endswith("mlp.down"))
    return plan.count(METHODS["bitfit"](add_zero_biases=True), shape) - last


def t_few_compacter(targets):
    """Compacter whose every matrix has a rule, the n^3 entries of A, of its own [T-Few, compacter.json]; here all share one."""
    def compute(shape):
        method = METHODS["compacter"](bottleneck=64, num_factors=4, targets=targets)
        adapters = len([path for path in join_paths(shape.config) if path.endswith(tuple(targets.split(",")))])
        return plan.count(method, shape) + (2 * adapters - 1) * method.num_factors**3

    return compute


def two_prompts(tokens):
    """A prompt before the source and one before the target, 2 n d [T-Few, prompt_tuning_encoder and _decoder]."""
    return together(*[trained("prompt", num_virtual_tokens=tokens)] * 2)


def fish_mask(part):
    """A share of all parameters [T-Few, fish.json]: as many entries as the mask keeps, here of the blocks' maps only, of all."""
    return lambda shape: METHODS["fisher_mask"](share=part).kept(shape.pretrained)


def megabytes(part):
    """On disk, as float32, in 2^20 bytes."""
    return lambda shape: 4 * part(shape) / 2**20


# ---- the rows ----------------------------------------------------------------------------------------------------

_ROUND = "it is a round share of the model, and not the count of these matrices"
_BINARY = "it counts in 2^20, and the matrices without their biases"
_LAYERWISE = "it is not what the paper's own formula gives"
_EVERY = "q,k,v,out,mlp.up,mlp.gate,mlp.down"
_GPT3, _LORA3 = "gpt3-175b", {"misprint": _ROUND}


def _lora_paper():
    two, three, four = "LoRA T2", "LoRA T3", "LoRA T4/T15"
    yield Published(two, "roberta-large", "LoRA r=8 q,v", trained("lora", rank=8))
    yield Published(two, "roberta-large", "AdptP r=64", trained("pfeiffer", bottleneck=64), misprint=_BINARY)
    yield Published(two, "roberta-large", "AdptH r=64", trained("houlsby", bottleneck=64), misprint=_BINARY)
    yield Published(two, "roberta-large", "AdptH r=8", trained("houlsby", bottleneck=8))
    yield Published(two, "deberta-xxl", "LoRA r=8 q,v (Table 10)", trained("lora", rank=8),
                    misprint="the released scripts train twice the rank that table 10 names")
    yield Published(three, "gpt2-medium", "FT-Top2", trained("top_k", layers=2))
    yield Published(three, "gpt2-medium", "LoRA r=4 q,v", trained("lora", rank=4), **_LORA3)
    yield Published(three, "gpt2-large", "FT", trained("full"))
    yield Published(three, "gpt2-large", "LoRA r=4 q,v", trained("lora", rank=4), **_LORA3)
    yield Published(four, _GPT3, "BitFit", bitfit_in_blocks,
                    misprint="it is a whole width more for each block than there are biases")
    for first, last in ((64, 8), (128, 8), (512, 8)):
        yield Published(four, _GPT3, f"PreEmbed lp={first},li={last}", pre_embed(first, last))
    for first, last in ((2, 2), (8, 0), (8, 8), (32, 4)):
        yield Published(four, _GPT3, f"PreLayer lp={first},li={last}", pre_layer(first, last), misprint=_LAYERWISE)
    for bottleneck in (1, 8, 16):
        yield Published(four, _GPT3, f"Adapter_H r={bottleneck}", trained("houlsby", bottleneck=bottleneck))
    for rank in (1, 2):
        yield Published(four, _GPT3, f"LoRA q,v r={rank}", trained("lora", rank=rank))
    yield Published("LoRA sec D.4", _GPT3, "LoRA qkvo r=2", trained("lora", rank=2, targets="q,k,v,out"),
                    misprint="the text's figure is of twice this rank, as table 15 has it")
    yield Published(four, _GPT3, "LoRA+PL q,v r=8, 12 tok", together(trained("lora", rank=8), pre_layer(8, 4)),
                    misprint="the part of the layers is not what the paper's own formula gives")


def _houlsby_and_bitfit():
    yield Published("Houlsby19", "bert-large", "adapter m=64, per task",
                    share(trained("houlsby", bottleneck=64, train_norms=True)), "%",
                    "it lies between the count without the pooler and that with it")
    yield Published("Houlsby19", "bert-base", "top layer only", block_and_pooler, misprint="it is said to be an approximation")
    yield Published("BitFit21", "roberta-base", "all biases", share(bitfit_and_pooler), "%",
                    "it is a share of a model with a smaller vocabulary than RoBERTa's")


# The lengths of prompts whose rows are here: {size: (those of the prompt's parameters, those of the whole model's)}.
_PROMPTS = {"small": ((1, 5, 20, 50, 150), (1, 150)), "base": ((1, 150), (1, 20, 50)), "large": ((5, 50), (20, 50, 150)),
            "xl": ((5, 20, 100, 150), (5, 20, 100)), "xxl": ((1, 5, 100), (5,))}


def _prompt_paper():
    four = "Prompt21 T4"
    for size, (alone, whole) in _PROMPTS.items():
        model = f"t5-v1_1-{size}"
        for tokens in alone:
            slip = "two digits stand in the wrong order" if (size, tokens) == ("small", 20) else ""
            yield Published(four, model, f"trainable n={tokens}", trained("prompt", num_virtual_tokens=tokens), misprint=slip)
        for tokens in whole:
            yield Published(four, model, f"total n={tokens}", total("prompt", num_virtual_tokens=tokens))
    part = trained("prompt", num_virtual_tokens=100)
    yield Published(four, "t5-v1_1-large", "percent n=100",
                    lambda shape: 100 * part(shape) / (shape.pretrained + part(shape)), "%", "a digit is wrong")


def _t_few():
    four, small = "T-Few T4", "t0-3b"
    yield Published(four, "t0-11b", "(IA)3 on disk", megabytes(trained("ia3")), "MiB",
                    "it lies between that in 2^20 and that in 10^6 bytes")
    yield Published(four, small, "LayerNorm only", trained("layernorm"))
    yield Published(four, small, "LoRA r=4 all linears", with_norms(trained("lora", rank=4, targets=_EVERY)))
    yield Published(four, small, "BitFit (with LayerNorm)", with_norms(t_few_biases))
    yield Published(four, small, "Adapter (d/32=64)", trained("pfeiffer", bottleneck=64, train_norms=True))
    yield Published(four, small, "Compacter n=4", with_norms(t_few_compacter("attn.join,mlp.join")),
                    misprint="two digits stand in the wrong order")
    yield Published(four, small, "Compacter++ n=4", with_norms(t_few_compacter("mlp.join")),
                    misprint="it is not what the released configuration gives")
    yield Published(four, small, "Prompt tuning (10)", two_prompts(10))
    yield Published(four, small, "Prefix tuning", trained("prefix", num_virtual_tokens=2), misprint="it counts in 2^10")
    yield Published(four, small, "FISH mask 0.2%", fish_mask(0.002))


PAPERS = (*_lora_paper(), *_houlsby_and_bitfit(), *_prompt_paper(), *_t_few())
