"""The built-in comparison, for which nothing is downloaded: a small encoder is pre-trained on CPython's own documentation
text, and the task is to tell which section of the manual a paragraph is from."""

import sys
import time
from pathlib import Path

import numpy as np

from ..autograd import no_grad
from ..data import Batch, corpus, files, mask_tokens, section_task, train_wordpiece
from ..interop import make_model, save_pretrained
from ..models import TransformerConfig
from ..training import Settings, fit
from ..training.display import ProgressBar

VOCABULARY, LENGTH = 3000, 64  # words, tokens in a block
EPOCHS = 16  # for a model this small, trained this little
TITLE = "a small encoder pre-trained here, on which section of CPython's documentation a paragraph is from"
RECIPE = 2  # raised when the recipe changes, so that an old folder is made again


class MaskedLanguageModelling:
    """Blocks of text in which 15 % of the tokens are to be filled in (Devlin et al., NAACL 2019, section 3.1).

    Args:
        tokenizer: a `Tokenizer`. texts: strings, joined into one stream. length: tokens in a block.
        batch_size: blocks in a batch. seed: of the masks.
    """

    def __init__(self, tokenizer, texts, length, batch_size, seed):
        stream = [i for text in texts for i in tokenizer.encode(text)]
        count = len(stream) // length
        blocks = np.array(stream[:count * length], np.int64).reshape(count, length)  # (N, T)
        held = max(1, count // 20)
        self.blocks = {"train": blocks[:-held], "dev": blocks[-held:]}
        self.tokenizer, self.batch_size, self.rng = tokenizer, batch_size, np.random.default_rng(seed)

    def number_of_batches(self):
        """Batches in one epoch."""
        return -(-len(self.blocks["train"]) // self.batch_size)

    def training_batches(self, rng):
        """The batches of an epoch, as arrays of indices."""
        self.rng = rng
        order = rng.permutation(len(self.blocks["train"]))
        return [order[i:i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def collate(self, indices, split="train", rng=None):
        """The batch of these blocks, freshly masked."""
        ids = self.blocks[split][indices]
        real = np.ones(ids.shape, bool)
        t = self.tokenizer
        corrupted, labels = mask_tokens(ids, real, rng or self.rng, t.mask_id, t.vocab_size, t.special_ids)
        return Batch(corrupted, real, np.zeros_like(ids), labels)

    def weight(self, batch):
        """What a batch counts for when several make one step."""
        return batch.size

    def loss(self, model, batch):
        """Mean cross-entropy at the masked places."""
        return model(batch.input_ids, batch.attention_mask, labels=batch.labels).loss

    def evaluate(self, model, split):
        """{"loss"} on the held-out blocks, with masks that are always the same."""
        batch = self.collate(np.arange(len(self.blocks[split])), split, np.random.default_rng(0))
        with no_grad():
            return {"loss": self.loss(model, batch).item()}


def prepare(folder):
    """Make (or find) the pre-trained encoder and the task in ``folder``; returns the paths of both."""
    folder, started = Path(folder), time.monotonic()
    model_folder, data_folder, done = folder / "encoder", folder / "sections", folder / "done.json"
    made = {"recipe": RECIPE, "python": list(sys.version_info[:2])}
    if done.is_file() and files.read_json(done, "note").get("made") == made:
        return model_folder, data_folder
    for each in (model_folder, data_folder):
        each.mkdir(parents=True, exist_ok=True)
    write_task(section_task(seed=0), data_folder)
    texts = corpus()
    tokenizer = train_wordpiece(texts, VOCABULARY)
    tokenizer.save(model_folder)
    config = TransformerConfig(model_type="bert", vocab_size=tokenizer.vocab_size, hidden_size=128, num_hidden_layers=2,
                               num_attention_heads=4, intermediate_size=512, max_position_embeddings=160,
                               type_vocab_size=2, norm_eps=1e-12, hidden_dropout=0.1, attention_dropout=0.1,
                               embedding_dropout=0.1, pad_token_id=tokenizer.pad_id)
    model = make_model(config, "mlm", np.random.default_rng(0))
    work = MaskedLanguageModelling(tokenizer, texts, LENGTH, 32, seed=0)
    settings = Settings(lr=2e-3, epochs=30, batch_size=32, warmup=0.1)
    print(f"pre-training a small encoder on CPython's documentation ({len(texts)} paragraphs), under a minute ...",
          file=sys.stderr)
    fit(model, dict(model.named_parameters()), work, settings, display=ProgressBar("pre-training"))
    save_pretrained(model, model_folder)
    files.write_json(done, {"made": made, "seconds": time.monotonic() - started})
    return model_folder, data_folder


def write_task(dataset, folder):
    """Write a Dataset as TSV files with a ``labels.txt``."""
    for split, examples in dataset.splits.items():
        with files.atomic(folder / f"{split}.tsv") as temporary:
            temporary.write_text("text\tlabel\n" + "".join(f"{e.text}\t{e.label}\n" for e in examples), encoding="utf-8")
    with files.atomic(folder / "labels.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in dataset.labels), encoding="utf-8")
