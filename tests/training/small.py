"""A run small enough to be repeated many times: made-up texts, a tiny model of each kind, and everything random from a seed.

The tests get it as the fixture ``small``; the processes that are killed import it.
"""

import numpy as np

from minipeft.data import Dataset, Example, Source, train_wordpiece
from minipeft.interop import make_model
from minipeft.models import TransformerConfig
from minipeft.training import Classification, LanguageModelling, Sequence2Sequence, Settings

WORDS = "the film is a good bad long dull warm story of people who never laugh again".split()
FAMILIES = {"classify": {"model_type": "bert", "type_vocab_size": 2, "labels": ("no", "yes", "perhaps"), "pooling": "mean"},
            "lm": {"model_type": "llama", "hidden_act": "silu", "num_key_value_heads": 1},
            "seq2seq": {"model_type": "t5", "num_decoder_layers": 1, "attention_bias": False, "attention_out_bias": False,
                        "mlp_bias": False, "eos_token_id": 3, "initializer_range": 1.0}}


def sentences(count, seed, longest=12):
    """Made-up sentences of different lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


TOKENIZER = train_wordpiece([" ".join(WORDS)], 120)


def examples(count, seed):
    """Sentences with classes that can be learnt: good, bad, neither."""
    return [Example(text, None, 1 if "good" in text else 0 if "bad" in text else 2) for text in sentences(count, seed)]


def sources(count, seed):
    """Sentences with one to three references each: the words backwards, and parts of that."""
    return [Source(text, tuple(" ".join(text.split()[::-1][i:]) for i in range(min(1 + number % 3, len(text.split())))))
            for number, text in enumerate(dict.fromkeys(sentences(count, seed)))]


def make_work(task, batch_size=4, train=14, max_length=10, **options):
    """Each kind of work on ``train`` sentences and 8 more for dev; for language modelling they are joined into a text."""
    if task == "seq2seq":
        splits = {"train": sources(train, 1), "dev": sources(8, 2)}
        usual = {"max_target_length": 7, "batch_size": batch_size}
        return Sequence2Sequence(TOKENIZER, splits, [3], max_length, **usual | options)
    if task == "classify":
        dataset = Dataset({"train": examples(train, 1), "dev": examples(8, 2)}, FAMILIES["classify"]["labels"])
        return Classification(TOKENIZER, dataset, max_length, batch_size, **options)
    texts = {"train": " ".join(sentences(train, 3)), "dev": " ".join(sentences(8, 4))}
    return LanguageModelling(TOKENIZER, texts, max_length, batch_size, **options)


def make(task, dropout=0.0, seed=0, **changes):
    """A tiny model with a head for the task."""
    fields = {"vocab_size": TOKENIZER.vocab_size, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
              "intermediate_size": 16, "max_position_embeddings": 16, "initializer_range": 0.3, "head_dim": 4}
    config = TransformerConfig(**fields | FAMILIES[task] | {"hidden_dropout": dropout, "attention_dropout": dropout} | changes)
    return make_model(config, task, np.random.default_rng(seed))


def settings(**changes):
    """Settings with everything that could go wrong switched on: accumulation, a partial group, warm-up, clipping."""
    usual = {"lr": 0.02, "epochs": 2, "batch_size": 4, "accumulate": 2, "warmup": 0.3, "checkpoint_seconds": 0.0}
    return Settings(**usual | changes)
