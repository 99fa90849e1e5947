"""Templates: a text becomes a sentence with a gap, and what the model would write there tells the class.

    "{text} It was {mask}."          the soup was cold . It was [MASK].

    masked (BERT)     [CLS] the soup was cold . It was [MASK]. [SEP]        read at the mask
    causal (GPT-2)    the soup was cold . It was                            read at the last token;
                                                                            what is behind {mask} is left out
    seq2seq (T5)      the soup was cold . It was <extra_id_0>. </s>         read in the decoder behind <extra_id_0>

Where the whole is too long the texts are cut, and never the template.

Sources: Schick and Schütze, EACL 2021, arXiv:2001.07676, section 3 (patterns); Raffel et al., JMLR 2020, section 3.1.4
(sentinels).
"""

import math
import string
from typing import NamedTuple

from ..data.tokenizer import longest_first

FIELDS = ("text", "text2", "mask")
KINDS = ("masked", "causal", "seq2seq")
SENTINEL = "<extra_id_0>"


class Cloze(NamedTuple):
    """A filled template: token ``ids``, their ``types``, ``place``, the index of the token whose state is read, and
    ``context``, the texts that stand before it."""

    ids: list
    types: list
    place: int
    context: tuple = ()


def kind_of(config):
    """How a model is prompted, one of `KINDS`."""
    return "seq2seq" if config.encoder_decoder else "causal" if config.causal else "masked"


class Template:
    """A pattern such as ``"{text} It was {mask}."``, with the fields {text}, {text2} (pairs) and {mask}.

    Args:
        pattern: the words; {mask} stands in it once, each text at most once. Braces of the pattern's own are doubled.

    Raises:
        ValueError: no mask or several, an unknown field, or braces that do not close.
    """

    def __init__(self, pattern):
        self.pattern, self.parts = pattern, []  # [(words before, field or None)]
        try:
            parsed = list(string.Formatter().parse(pattern))
        except ValueError as error:
            raise ValueError(f"template: {pattern!r}: {error}; write {{text}} and {{mask}}, and {{{{ for a brace") from None
        for words, name, spec, conversion in parsed:
            if name is not None and (name not in FIELDS or spec or conversion):
                raise ValueError(f"template: expected the fields {{text}}, {{text2}} and {{mask}}, got {{{name}}} in {pattern!r}")
            self.parts.append((words, name))
        names = [name for _, name in self.parts if name]
        for name in FIELDS:
            if names.count(name) > 1 or name == "mask" and name not in names:
                raise ValueError(f"template: expected {{{name}}} once, got it {names.count(name)} times in {pattern!r}")
        self.spaced = self.before().endswith(" ") or self.before() == ""  # whether the word at the mask begins a new word

    def before(self):
        """The words of the pattern directly before the mask, "" where a text stands there."""
        return next(words for words, name in self.parts if name == "mask")

    def check(self, kind):
        """Raise ValueError where a model of this kind would not read all texts."""
        names = [name for _, name in self.parts if name]
        unread = names[names.index("mask") + 1:]
        if kind == "causal" and unread:
            raise ValueError(f"template: a causal model reads what stands before {{mask}} alone, and in {self.pattern!r} "
                             f"{{{unread[0]}}} stands behind it; put {{mask}} last")

    def halves(self, text, text2, context=""):
        """What stands before the mask, and what behind it; ``context`` stands before everything."""
        fields, out = {"text": text, "text2": text2 or ""}, [context, ""]
        side = 0
        for words, name in self.parts:
            out[side] += words
            if name == "mask":
                side = 1
            elif name:
                out[side] += fields[name]
        return out

    def fill(self, text, text2=None, word=""):
        """The pattern with texts and a word in the gap."""
        before, behind = self.halves(text, text2)
        return (before + word + behind).strip()

    def encode(self, tokenizer, examples, max_length, kind, contexts=None):
        """Fill the template with each example.

        Args:
            tokenizer: a `Tokenizer`. examples: things with ``text`` and ``text2``. max_length: most tokens, all included.
            kind: one of `KINDS`.
            contexts: for each example a list of texts that stand before it (its demonstrations); default: none. Where the whole
                is too long the first of them are left out, whole, before anything is cut.

        Returns:
            (list of `Cloze`, how many texts were cut).

        Raises:
            ValueError: a masked model's tokenizer without a mask token, T5's without sentinels, or no room beside the template.
        """
        gap, cut = self._gap(tokenizer, kind), 0
        filled = [(e.text, e.text2, "") for e in examples]
        encodings = self._whole(tokenizer, [self._shown(*each, gap, kind) for each in filled])
        kept = self._kept(tokenizer, contexts, [max_length - len(e.ids) for e in encodings]) if contexts else [[]] * len(filled)
        if contexts:
            filled = [(*each[:2], "".join(left)) for each, left in zip(filled, kept)]
            encodings = self._whole(tokenizer, [self._shown(*each, gap, kind) for each in filled])
        for number, left in enumerate(kept):
            while len(encodings[number].ids) > max_length and left:  # at the seams there may be a token more
                del left[0]
                filled[number] = (*filled[number][:2], "".join(left))
                (encodings[number],) = self._whole(tokenizer, [self._shown(*filled[number], gap, kind)])
            if len(encodings[number].ids) > max_length:
                filled[number], encodings[number] = self._shortened(tokenizer, filled[number][:2], max_length, gap, kind)
                cut += 1
        rows = [self._cloze(tokenizer, e, each, kind) for e, each in zip(encodings, filled)]
        return [row._replace(context=tuple(left)) for row, left in zip(rows, kept)], cut

    @staticmethod
    def _whole(tokenizer, texts, **settings):
        """The encodings of texts, of any length: what is too long is cut here, where the template is known."""
        return tokenizer.encode_pairs(texts, max_length=math.inf, **settings)

    @classmethod
    def _kept(cls, tokenizer, contexts, rooms):
        """[the last texts of each context that fit into its room together, in tokens]."""
        known = list(dict.fromkeys(text for context in contexts for text in context))
        lengths = dict(zip(known, (len(e.ids) for e in cls._whole(tokenizer, known, add_special_tokens=False))))
        out = []
        for context, room in zip(contexts, rooms):
            first = len(context)
            while first > 0 and lengths[context[first - 1]] <= room:
                first -= 1
                room -= lengths[context[first]]
            out.append(list(context[first:]))
        return out

    def _gap(self, tokenizer, kind):
        """The token that stands for the gap, as text; "" for causal models, which read up to it."""
        if kind == "causal":
            return ""
        number = tokenizer.mask_id if kind == "masked" else tokenizer.id_of(SENTINEL)
        if number is None:
            raise ValueError("template: this tokenizer has no mask token" if kind == "masked" else
                             f"template: this tokenizer has no sentinel {SENTINEL}")
        return tokenizer.piece_of(number)

    def _shown(self, text, text2, context, gap, kind):
        """The text that the model reads."""
        before, behind = self.halves(text, text2, context)
        return before.strip() if kind == "causal" else (before + gap + behind).strip()

    def _shortened(self, tokenizer, pair, max_length, gap, kind):
        """((text, text2, no context), encoding) of an example whose texts are cut until all fits."""
        texts = [text or "" for text in pair]
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        room = sum(lengths) + max_length - len(tokenizer.encode(self._shown(*texts, "", gap, kind)))
        while room >= 0:
            kept = (*(tokenizer.shortened(text, count) for text, count in zip(texts, longest_first(*lengths, room))), "")
            (encoding,) = self._whole(tokenizer, [self._shown(*kept, gap, kind)])
            if len(encoding.ids) <= max_length:
                return kept, encoding
            room -= 1  # the seam between a text and the template may take one token more
        raise ValueError(f"max_length: the template {self.pattern!r} alone takes more than {max_length} tokens; "
                         "give a larger one")

    def _cloze(self, tokenizer, encoding, filled, kind):
        """An encoding with the place to read at."""
        if kind == "causal":
            return Cloze(encoding.ids or [tokenizer.pad_id], encoding.types or [0], max(len(encoding.ids) - 1, 0))
        if kind == "seq2seq":
            return Cloze(encoding.ids, encoding.types, 1)  # of the decoder, which reads its start token and the sentinel
        # A text may hold the words of a mask itself: the template's own is the one behind as many as stand before it.
        before = tokenizer.encode(self.halves(*filled)[0].strip(), add_special_tokens=False)
        places = [place for place, number in enumerate(encoding.ids) if number == tokenizer.mask_id]
        return Cloze(encoding.ids, encoding.types, places[before.count(tokenizer.mask_id)])
