"""A small world for commands: three pre-trained models of a few thousand parameters, and texts that praise or blame."""

import csv
import json

import numpy as np

from minipeft.data import train_wordpiece
from minipeft.interop import make_model, save_pretrained
from minipeft.models import TransformerConfig

PRAISE = ["good", "great", "fine", "lovely", "warm", "bright"]
BLAME = ["bad", "awful", "poor", "dull", "cold", "grim"]
OTHER = ["the", "film", "is", "a", "very", "story", "of", "and", "it", "was"]
LABELS = ("blame", "praise")
POSITIONS = 40
CHOICES = {
    "bert": {"type_vocab_size": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "gpt2": {"hidden_act": "gelu_new", "hidden_dropout": 0.1},
    "llama": {
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_out_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "num_key_value_heads": 1,
    },
}


def examples(count, seed=0):
    """[(text, label name)]: words that say nothing, and two of praise or of blame."""
    rng, out = np.random.default_rng(seed), []
    for i in range(count):
        words = list(rng.choice(OTHER, int(rng.integers(3, 12))))
        for word in rng.choice((BLAME, PRAISE)[i % 2], 2):
            words.insert(int(rng.integers(len(words) + 1)), str(word))
        out.append((" ".join(words), LABELS[i % 2]))
    return out


def write_tsv(path, rows, header=("text", "label")):
    """A TSV file of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")


def make(folder):
    """Write the models ``bert``, ``gpt2``, ``llama`` and the data: the folder ``data`` and single files beside it."""
    rows = examples(120)
    tokenizer = train_wordpiece([text for text, _ in rows], 120)
    for number, (family, choices) in enumerate(CHOICES.items()):
        config = TransformerConfig(
            model_type=family,
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=POSITIONS,
            pad_token_id=tokenizer.pad_id,
            initializer_range=0.2,
            norm_eps=1e-6,
            **choices,
        )
        save_pretrained(make_model(config, "none" if family == "bert" else "lm", np.random.default_rng(number)), folder / family)
        tokenizer.save(folder / family)
    for split, part in (("train", rows[:80]), ("dev", rows[80:100]), ("test", rows[100:])):
        write_tsv(folder / "data" / f"{split}.tsv", part)
    write_tsv(folder / "one.tsv", rows)
    with open(folder / "one.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "one.jsonl").write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for text, label in rows))
    second = examples(120, seed=1)
    write_tsv(folder / "pairs.tsv", [(a, b, label) for (a, label), (b, _) in zip(rows, second)], ("text", "text2", "label"))
    write_tsv(folder / "unlabelled.tsv", [(text,) for text, _ in rows[:7]], ("text",))
    (folder / "raw.txt").write_text("\n".join(text for text, _ in rows) + "\n")
    return folder
