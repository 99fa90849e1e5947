"""``minipeft pretrain``: make a small model from raw text and a seed, as the three that come with the package were made.

    encoder    BERT     masked words            decoder    GPT-2    the next word            seq2seq    T5    spans taken out

A folder that is made holds the model, its tokenizer and ``pretraining.json``: the recipe, the losses of the first steps, the
held-out loss after each round, and the SHA-256 of each file. The models of the package lie in ``minipeft/pretrained``; the
commands know them as ``toy:encoder``, ``toy:decoder`` and ``toy:seq2seq``.
"""

import contextlib
import hashlib
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..data import files, train_wordpiece
from ..data.corpora import read_corpus
from ..data.tokenizer import SENTINELS
from ..interop import make_model, save_pretrained
from ..models import TransformerConfig
from ..training import Settings, fit
from ..training.display import ProgressBar
from ..training.loop import Silent
from ..training.pretraining import CausalLanguageModelling, MaskedLanguageModelling, SpanCorruption

FAMILIES = {"encoder": "bert", "decoder": "gpt2", "seq2seq": "t5"}
TASKS = {"encoder": "mlm", "decoder": "lm", "seq2seq": "seq2seq"}
MADE, CHECKPOINT = "pretraining.json", "checkpoint.safetensors"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FIRST, EXACT, NEAR = 50, 1e-3, 0.05  # steps whose losses are kept; how near a repetition comes to them, and to the last loss
VOCABULARY, LARGE = {"toy": 600}, 3000  # most pieces: the toy world has few words
DRAW = 3  # what a generator made of (seed, purpose) is for, beside those of the loop


@dataclass(frozen=True)
class Recipe:
    """All that fixes a pre-training.

    ``steps`` of ``batch_size`` texts (decoder: blocks) of at most ``length`` tokens; the rate rises to ``lr`` in
    the first 5 % and falls along a cosine. ``width`` D, ``feed_forward`` the inner width (default: 4 D), ``vocabulary`` most
    pieces.
    """

    arch: str
    corpus: str = "toy"
    seed: int = 0
    steps: int = 6000
    batch_size: int = 64
    length: int = 96
    lr: float = 2e-3
    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int | None = None
    vocabulary: int = 600

    def __post_init__(self):
        if self.arch not in FAMILIES:
            raise ValueError(f"arch: expected one of {', '.join(FAMILIES)}, got {self.arch!r}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a number that divides the width {self.width}, got {self.heads}")
        if self.length < 8:
            raise ValueError(f"length: expected at least 8 tokens, got {self.length}")

    @property
    def per_round(self):
        """Steps in a round, of which there are 16, or fewer of 50 steps."""
        return max(-(-self.steps // 16), 50)

    def config(self, tokenizer):
        """The model's `TransformerConfig`."""
        shape = {"model_type": FAMILIES[self.arch], "vocab_size": tokenizer.vocab_size, "hidden_size": self.width,
                 "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                 "intermediate_size": self.feed_forward or 4 * self.width, "max_position_embeddings": max(128, self.length),
                 "pad_token_id": tokenizer.pad_id, "initializer_range": 0.05}
        if self.arch == "encoder":
            return TransformerConfig(**shape, type_vocab_size=2, norm_eps=1e-12)
        if self.arch == "decoder":
            return TransformerConfig(**shape, hidden_act="gelu_new", eos_token_id=tokenizer.eos_id)
        return TransformerConfig(**{**shape, "initializer_range": 1.0}, num_decoder_layers=self.layers, hidden_act="relu",
                                 attention_bias=False, attention_out_bias=False, mlp_bias=False, norm_eps=1e-6,
                                 eos_token_id=tokenizer.eos_id, decoder_start_token_id=tokenizer.pad_id)

    def work(self, tokenizer, corpus):
        """What it is trained on."""
        args = (tokenizer, corpus, self.batch_size, self.per_round, self.length)
        if self.arch == "seq2seq":
            return SpanCorruption(*args, [tokenizer.id_of(name) for name in SENTINELS])
        return (MaskedLanguageModelling if self.arch == "encoder" else CausalLanguageModelling)(*args)


RECIPES = {"encoder": Recipe("encoder"), "decoder": Recipe("decoder", steps=5000, batch_size=24, length=64),
           "seq2seq": Recipe("seq2seq", steps=8000, layers=2, feed_forward=256)}


# ---- the command -----------------------------------------------------------------------------------------------


class Progress(ProgressBar):
    """A progress bar that says the held-out loss after each round."""

    def start(self, total, done):
        """Pre-training of ``total`` steps begins, ``done`` of them are behind us."""
        super().start(total, done)
        self.total = total

    def evaluated(self, epoch, scores):
        """A round ended with this loss on the held-out texts."""
        left = f"{self.left * self._seconds() / self.steps:.0f} s left" if self.steps else "going on"
        left = left if self.left else "done"
        average = "-" if self.average is None else f"{self.average:.4f}"
        self._print(f"{self.title}: step {self.total - self.left} of {self.total}  training loss {average}  held-out loss "
                    f"{scores['loss']:.4f}  {left}")


def start(recipe, corpus):
    """The tokenizer, the fresh model and the work of a recipe."""
    tokenizer = train_wordpiece(corpus.sample, recipe.vocabulary, FAMILIES[recipe.arch])
    model = make_model(recipe.config(tokenizer), TASKS[recipe.arch], np.random.default_rng([recipe.seed, DRAW]))
    return tokenizer, model, recipe.work(tokenizer, corpus)


def train(recipe, model, work, **where):
    """Run a recipe; returns `fit`'s history. ``where`` are `fit`'s checkpoint, resume and display."""
    settings = Settings(lr=recipe.lr, epochs=-(-recipe.steps // recipe.per_round), batch_size=recipe.batch_size, warmup=0.05,
                        schedule="cosine", seed=recipe.seed, max_steps=recipe.steps)
    return fit(model, dict(model.named_parameters()), work, settings, **where)


def pretrain(recipe, out, resume=False, display=None):
    """Make a model in a folder.

    Args:
        recipe: a `Recipe`. out: folder, created if missing; it must be empty unless ``resume``, which goes on with the
            unfinished pre-training there (of the same recipe). display: a progress display.

    Returns:
        What ``pretraining.json`` holds.

    Raises:
        ValueError: the recipe does not fit the corpus, or the folder holds something else.
        OSError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the checkpoint is kept.
    """
    out = Path(out)
    made = check_folder(recipe, out, resume)
    if made is not None:
        return made
    corpus = read_corpus(recipe.corpus)
    tokenizer, model, work = start(recipe, corpus)
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / MADE, {"recipe": asdict(recipe)})
    history = train(recipe, model, work, checkpoint=out / CHECKPOINT, resume=resume, display=display)
    save_pretrained(model, out)
    tokenizer.settings["model_max_length"] = recipe.length  # places behind it mean nothing to the model
    tokenizer.save(out)
    made = {"recipe": asdict(recipe), "corpus": corpus.note, "parameters": sum(p.size for p in model.parameters()),
            "losses": [round(loss, 6) for loss in history["losses"][:FIRST]],
            "held_out": [{"step": each["step"], "loss": round(each["loss"], 6)} for each in history["evaluations"]],
            "sha256": {name: sha256(out / name) for name in FILES}}
    files.write_json(out / MADE, made)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return made


def check_folder(recipe, out, resume):
    """See that a folder may be written; what it holds already, where ``resume`` finds this pre-training finished."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    before = files.read_json(out / MADE, "recipe") if (out / MADE).is_file() else {}
    if not resume or "recipe" not in before:
        raise ValueError(f"--out {out}: is not empty; " + ("give --resume to go on, or another folder" if "recipe" in before
                                                           else "expected a new folder for the model"))
    changed = [f"{f.name} was {before['recipe'].get(f.name)!r}, now {getattr(recipe, f.name)!r}" for f in fields(Recipe)
               if before["recipe"].get(f.name) != getattr(recipe, f.name)]
    if changed:
        raise ValueError(f"--out {out}: holds a pre-training with other settings ({'; '.join(changed)}); choose another folder")
    return before if "sha256" in before else None


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def run(arch, out, settings, resume):
    """The command: make a model, and say what was made; ``settings`` are those of the `Recipe` that differ from its own."""
    settings = {"vocabulary": VOCABULARY.get(settings["corpus"], LARGE), **settings}
    recipe = replace(RECIPES[arch], **settings)
    made = pretrain(recipe, out, resume, Progress(f"pre-training the {arch}"))
    last = made["held_out"][-1]
    print(f"made        {out}: {recipe.layers} layers of width {recipe.width}, {made['parameters']:,} parameters")
    print(f"corpus      {made['corpus']}")
    first = made["held_out"][0]
    print(f"held out    loss {last['loss']:.4f} after {last['step']} steps"
          + (f", from {first['loss']:.4f} after {first['step']}" if first != last else ""))
    return made


# ---- verification ----------------------------------------------------------------------------------------------


class Enough(Exception):
    """As many steps are done as were asked for."""


class Opening(Silent):
    """A display that keeps the losses of the first ``steps`` and then stops the training."""

    def __init__(self, steps):
        self.steps, self.losses = steps, []

    def step(self, loss, examples):
        """One more step is done."""
        self.losses.append(loss)
        if len(self.losses) == self.steps:
            raise Enough


def first_losses(recipe, steps=FIRST):
    """The losses of a recipe's first ``steps``."""
    _, model, work = start(recipe, read_corpus(recipe.corpus))
    opening = Opening(steps)
    with contextlib.suppress(Enough):
        train(recipe, model, work, display=opening)
    return opening.losses


def shipped(arch):
    """(folder of one of the package's models, its `Recipe`, what its ``pretraining.json`` holds)."""
    folder = files.model_folder(f"{files.TOY}{arch}")
    made = files.read_json(folder / MADE, "recipe")
    return folder, Recipe(**made["recipe"]), made


def verify(arch, display=None):
    """Pre-train one of the package's models again, and compare.

    Returns:
        [(what was compared, whether it holds, words)]: the files as they lie there against their recorded SHA-256, the losses
        of the first steps, the last held-out loss, and whether the new weights have the same bits. The bits are those of one
        machine and its libraries, so that the last is told and nothing follows from it: it "holds" as None where they differ.
    """
    folder, recipe, made = shipped(arch)
    changed = [name for name in FILES if sha256(folder / name) != made["sha256"][name]]
    found = [("files", not changed, f"changed: {', '.join(changed)}" if changed else "as they were made")]
    with tempfile.TemporaryDirectory() as place:
        again = pretrain(recipe, Path(place) / arch, display=display)
    gap = max(abs(a - b) for a, b in zip(again["losses"], made["losses"]))
    found.append(("first losses", gap <= EXACT, f"{len(made['losses'])} steps, differing by at most {gap:.1e} (limit {EXACT})"))
    last, before = again["held_out"][-1]["loss"], made["held_out"][-1]["loss"]
    found.append(("held-out loss", abs(last - before) <= NEAR, f"{last:.4f}, recorded {before:.4f} (limit {NEAR} apart)"))
    same = again["sha256"] == made["sha256"]
    words = "the same" if same else "others, as on another machine or with other libraries"
    found.append(("bits", True if same else None, words))
    return found


def run_verification(archs):
    """The command with --verify: `verify` each, and say what was found."""
    out = []
    for arch in archs:
        for what, holds, words in verify(arch, Progress(f"pre-training the {arch} again")):
            print(f"{arch:<9} {what:<14} {'no' if holds is False else 'yes' if holds else '-':<4} {words}", flush=True)
            out.append({"arch": arch, "what": what, "holds": holds, "words": words})
    return out
