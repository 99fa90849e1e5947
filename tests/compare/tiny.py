"""A small world for commands: models of a few thousand parameters, texts that praise or blame, and sources with references."""

import csv
import json

import numpy as np

from minipeft.data import Tokenizer, train_wordpiece
from minipeft.interop import make_model, save_pretrained
from minipeft.models import TransformerConfig

PRAISE = ["good", "great", "fine", "lovely", "warm", "bright"]
BLAME = ["bad", "awful", "poor", "dull", "cold", "grim"]
OTHER = ["the", "film", "is", "a", "very", "story", "of", "and", "it", "was"]
LABELS = ("blame", "praise")
POSITIONS = 40
FILMS, SEEN = ["film", "story", "play"], ["good", "dull", "warm", "grim"]
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
T5 = {
    "num_decoder_layers": 2,
    "hidden_act": "gelu_new",
    "gated": True,
    "attention_bias": False,
    "attention_out_bias": False,
    "mlp_bias": False,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
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


def sources(count, seed=0):
    """[(source, reference)] of ``count`` distinct sources, which stand together and have one to three references each."""
    rng, out = np.random.default_rng(seed), []
    known = [(a, b, c, d) for a in FILMS for b in SEEN for c in FILMS if c != a for d in SEEN]
    for i in rng.permutation(len(known))[:count]:
        a, b, c, d = known[i]
        texts = [f"the {a} is {b} and the {c} is {d}", f"a {b} {a} and a {d} {c}", f"the {a} is {b}, the {c} {d}"]
        out += [(f"{a}[{b}], {c}[{d}]", text) for text in texts[: 1 + int(rng.integers(3))]]
    return out


def t5_tokenizer(texts, ending=True):
    """A tokenizer of T5's kind: pieces of words behind a mark for the space, and an end token behind each text (or none)."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    words = sorted({word.strip(",]") for text in texts for word in text.replace("[", " ").split()})
    letters = sorted({c for text in texts for c in text if c != " "} | {"\u2581"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -3.0) for word in words] + [(word, -4.0) for word in words if len(word) > 1]
    inner = tokenizers.Tokenizer(models.Unigram(pieces + [(c, -9.0) for c in letters if c not in words], unk_id=2))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.add_special_tokens(["<pad>", "</s>", "<unk>"])
    if ending:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return Tokenizer(inner, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>",
                             "unk_token": "<unk>"})


def make_t5(folder, tokenizer, tied=True, **changes):
    """Write a small T5."""
    config = TransformerConfig(model_type="t5", vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=2,
                               num_attention_heads=2, intermediate_size=32, max_position_embeddings=512,
                               pad_token_id=tokenizer.pad_id, initializer_range=0.7, norm_eps=1e-6, tie_word_embeddings=tied,
                               **T5 | changes)
    save_pretrained(make_model(config, "seq2seq", np.random.default_rng(3)), folder)
    tokenizer.save(folder)


def make(folder):
    """Write the models ``bert``, ``gpt2``, ``llama``, ``t5``, and the data: folders ``data`` and ``told``, single files."""
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
    pairs = sources(90)
    make_t5(folder / "t5", t5_tokenizer([text for row in pairs for text in row]))
    starts = [i for i, (source, _) in enumerate(pairs) if i == 0 or source != pairs[i - 1][0]]
    cuts = starts[60::15]
    for split, part in (("train", pairs[: cuts[0]]), ("dev", pairs[cuts[0] : cuts[1]]), ("test", pairs[cuts[1] :])):
        write_tsv(folder / "told" / f"{split}.tsv", part, ("text", "text2"))
    write_tsv(folder / "told.tsv", pairs, ("text", "text2"))
    (folder / "raw.txt").write_text("\n".join(text for text, _ in rows) + "\n")
    return folder
