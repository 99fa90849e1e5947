"""From text to token ids and back, with the tokenizer that a model was trained with; and a new one trained from texts.

The work is done by Hugging Face's library ``tokenizers``, which reads the ``tokenizer.json`` of a model folder.
"""

from pathlib import Path
from typing import NamedTuple

from . import files
from .readers import read_text

ROLES = ("pad", "eos", "bos", "mask")
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(20))
CHUNK = 1024  # texts encoded at a time: the library's own results are many times larger than the ids


class Encoding(NamedTuple):
    """One text or pair as the model reads it: ``ids``, and ``types`` (0 for the first text, 1 for the second)."""

    ids: list
    types: list


class Encodings(list):
    """A list of `Encoding`; ``truncated`` is the number of texts that were too long and have been cut."""

    truncated = 0


def _library():
    try:
        import tokenizers
    except ImportError:
        raise ValueError("tokenizers: the library is not installed; run: pip install tokenizers") from None
    return tokenizers


def _read_settings(path):
    """The JSON object in a file, {} where there is no such file."""
    return files.read_json(path, "tokenizer setting") if path.is_file() else {}


def longest_first(first, second, room):
    """How many tokens to keep of two texts of these lengths so that both fit into ``room``.

    The longer text is cut first; where both are too long, each keeps half, and the longer (of equals the second) the
    odd one. This is what the library ``tokenizers`` does.
    """
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


class Tokenizer:
    """A tokenizer of the library ``tokenizers``, and what its folder's settings say.

    ``pad_id`` (always an id: where there is no padding token, the end-of-text token's, else 0; padding is masked),
    ``eos_id``, ``bos_id``, ``mask_id`` (None where there is none), ``special_ids`` (ids of all special tokens, sorted),
    ``vocab_size``, ``model_max_length`` (None where unknown).

    Args:
        library_tokenizer: a ``tokenizers.Tokenizer``; padding and truncation that are stored in it are switched off.
        settings: contents of ``tokenizer_config.json``: ``pad_token``, ``eos_token``, ``bos_token``, ``mask_token``,
            ``model_max_length``. A token that the vocabulary does not have counts as none.
        model_config: contents of the model's ``config.json``, whose ids (``pad_token_id``, ...) fill the gaps.
    """

    def __init__(self, library_tokenizer, settings, model_config=None):
        self._inner, self.settings = library_tokenizer, dict(settings)
        self._inner.no_padding()
        self._inner.no_truncation()
        ids = {role: self._role(role, model_config or {}) for role in ROLES}
        self.eos_id, self.bos_id, self.mask_id = ids["eos"], ids["bos"], ids["mask"]
        self.pad_id = next((i for i in (ids["pad"], ids["eos"]) if i is not None), 0)
        added = self._inner.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special} | set(ids.values())
        self.special_ids = tuple(sorted(special - {None}))
        self.vocab_size = self._inner.get_vocab_size(with_added_tokens=True)
        longest = self.settings.get("model_max_length")
        self.model_max_length = int(longest) if isinstance(longest, (int, float)) and 0 < longest < 1e9 else None

    def _role(self, role, model_config):
        token = self.settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token  # some folders store a token with its flags
        found = self._inner.token_to_id(token) if isinstance(token, str) else None
        if found is not None:
            return found
        found = model_config.get(f"{role}_token_id")
        found = found[0] if isinstance(found, list) and found else found  # some models stop at several tokens
        known = isinstance(found, int) and found >= 0 and self._inner.id_to_token(found) is not None
        return found if known else None

    @classmethod
    def from_folder(cls, folder):
        """Load the tokenizer of a model folder: ``tokenizer.json``, with ``tokenizer_config.json``,
        ``special_tokens_map.json`` and ``config.json`` where they are.

        Raises:
            ValueError: no such folder, no ``tokenizer.json``, or a file that cannot be read.
        """
        folder = files.model_folder(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; "
                             "expected a folder with a tokenizer.json")
        path = folder / "tokenizer.json"
        if not path.is_file():
            older = [name for name in ("vocab.txt", "vocab.json", "tokenizer.model") if (folder / name).is_file()]
            raise ValueError(f"{folder}: no tokenizer.json" + (f"; {older[0]} is an older form: load it with transformers' "
                             "AutoTokenizer and save it again, which writes tokenizer.json" if older else ""))
        text, library = read_text(path), _library()
        try:
            inner = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{path}: not a tokenizer that the library tokenizers can read ({error})") from None
        settings = _read_settings(folder / "special_tokens_map.json") | _read_settings(folder / "tokenizer_config.json")
        return cls(inner, settings, _read_settings(folder / "config.json"))

    def save(self, folder):
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, from which `from_folder` and transformers load it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic(folder / "tokenizer.json") as temporary:
            temporary.write_text(self._inner.to_str(), encoding="utf-8")
        files.write_json(folder / "tokenizer_config.json", self.settings)

    def encode(self, text, add_special_tokens=True):
        """The ids of one text of any length, as a list; with the special tokens that the model expects around a text."""
        return self._encode_batch([text], add_special_tokens)[0].ids

    def shortened(self, text, count):
        """The beginning of a text that is at most ``count`` tokens long, cut behind a token; "" for none."""
        ends = [end for _, end in self._inner.encode(text, add_special_tokens=False).offsets]
        return text if len(ends) <= count else text[:ends[count - 1]] if count > 0 else ""

    def piece_of(self, number):
        """The piece of the vocabulary with this id."""
        return self._inner.id_to_token(int(number))

    def id_of(self, piece):
        """The id of a piece of the vocabulary, such as ``[MASK]`` or ``##ing``; None where there is no such piece."""
        return self._inner.token_to_id(piece)

    def decode(self, ids, skip_special_tokens=True):
        """The text of a sequence of ids."""
        ids = [int(i) for i in ids]
        if any(i < 0 for i in ids):
            raise ValueError(f"decode: expected ids from 0 on, got {min(ids)}")
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def _encode_batch(self, inputs, add_special_tokens=True):
        try:
            return self._inner.encode_batch(inputs, add_special_tokens=add_special_tokens)
        except TypeError:  # not str, or half a surrogate pair
            bad = next(t for pair in inputs for t in (pair if isinstance(pair, tuple) else (pair,)) if not _is_text(t))
            raise ValueError(f"encode: expected text, got {ascii(bad)[:60]}") from None

    def encode_pairs(self, texts, texts2=None, max_length=None, add_special_tokens=True):
        """Encode many texts, or pairs of texts, and cut those that are too long.

        Args:
            texts: N strings. texts2: N strings, or None.
            max_length: most tokens in one encoding, special tokens included, ``math.inf`` for no limit; default:
                ``model_max_length``, else no limit.
            add_special_tokens: with those that the model expects around a text.

        Returns:
            `Encodings`: a list of N `Encoding` whose ``truncated`` says how many were cut. The special tokens stay; of a
            pair the longer text is cut first (see `longest_first`).

        Raises:
            ValueError: a max_length that leaves no room for text; lists of different lengths.

        The cutting is done here: the library's own truncation also builds each piece that it cuts off, for a pair in
        every combination, which took a minute and gigabytes of memory for a pair of 100,000 characters each.
        """
        limit = self.model_max_length if max_length is None else max_length
        specials = self._inner.num_special_tokens_to_add(texts2 is not None) if add_special_tokens else 0
        if limit is not None and limit <= specials:
            raise ValueError(f"max_length: {limit} tokens leave no room for text beside {specials} special tokens")
        if texts2 is not None and len(texts) != len(texts2):
            raise ValueError(f"texts2: expected as many as texts, {len(texts)}, got {len(texts2)}")
        inputs = list(texts) if texts2 is None else list(zip(texts, texts2))
        out = Encodings()
        for start in range(0, len(inputs), CHUNK):
            for e in self._encode_batch(inputs[start:start + CHUNK], add_special_tokens):
                if limit is None or len(e) <= limit:
                    out.append(Encoding(e.ids, e.type_ids))
                else:
                    out.append(_shortened(e, limit - specials))
                    out.truncated += 1
        return out


def _is_text(value):
    """Whether the library can encode this: a str without halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _shortened(e, room):
    """A library encoding cut so that ``room`` tokens of its texts are left; special tokens stay where they are."""
    sources = e.sequence_ids  # for each token 0 or 1, the text it is from, or None for a special token
    left = list(longest_first(sources.count(0), sources.count(1), room))
    ids, types = [], []
    for token, kind, source in zip(e.ids, e.type_ids, sources):
        if source is not None:
            left[source] -= 1
            if left[source] < 0:
                continue
        ids.append(token)
        types.append(kind)
    return Encoding(ids, types)


class Dialect(NamedTuple):
    """What a family of models expects around a text: its special tokens, templates of one text and of two, and the roles."""

    specials: tuple
    single: str
    pair: str
    roles: dict


DIALECTS = {
    "bert": Dialect(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
                    {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}),
    "gpt2": Dialect(("<|endoftext|>", "[UNK]"), "$A", "$A $B:1", {"eos": "<|endoftext|>", "unk": "[UNK]"}),
    "t5": Dialect(("<pad>", "</s>", "[UNK]", *SENTINELS), "$A </s>", "$A </s> $B </s>",
                  {"pad": "<pad>", "eos": "</s>", "unk": "[UNK]"}),
}


def train_wordpiece(texts, vocab_size, family="bert"):
    """Train a lower-cased WordPiece tokenizer, which puts around a text what a family of models expects there.

    Args:
        texts: strings. vocab_size: most pieces in the vocabulary; small texts may give fewer.
        family: ``bert`` ([CLS] A [SEP] and [CLS] A [SEP] B [SEP]), ``gpt2`` (nothing around a text; <|endoftext|> parts texts)
            or ``t5`` (A </s>; with sentinels for spans). The real GPT-2 and T5 have other kinds of pieces.

    Returns:
        `Tokenizer`; the same texts and size give the same one, always.

    Raises:
        ValueError: no words in the texts, or a vocab_size below the special tokens and single characters.
    """
    library = _library()
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    dialect = DIALECTS[family]
    texts, normalizer, splitter = list(texts), normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise ValueError("train_wordpiece: there are no words in these texts")
    # The trainer numbers the pieces inside words (##a, ##b, ...) in the order of a hash table, anew in each process, and
    # breaks ties between merges by these numbers. Given to it as special tokens they have fixed numbers.
    inner = sorted({f"##{c}" for word in words for c in word[1:]})
    least = len(dialect.specials) + len(inner) + len({c for word in words for c in word})
    if vocab_size < least:
        raise ValueError(f"vocab_size: expected at least {least}, for {len(dialect.specials)} special tokens and the "
                         f"{least - len(dialect.specials)} pieces of one character in these texts, got {vocab_size}")
    trained = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False,
                                                                 special_tokens=[*dialect.specials, *inner]))
    out = library.Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    out.normalizer, out.pre_tokenizer, out.decoder = normalizer, splitter, decoders.WordPiece()
    out.add_special_tokens(list(dialect.specials))
    around = [token for token in dialect.specials if token in dialect.pair]
    out.post_processor = processors.TemplateProcessing(single=dialect.single, pair=dialect.pair,
                                                       special_tokens=[(token, out.token_to_id(token)) for token in around])
    return Tokenizer(out, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True,
                           **{f"{role}_token": token for role, token in dialect.roles.items()}})
