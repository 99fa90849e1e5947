"""Scores of written texts against their references: exact match, and BLEU and ROUGE-L by the libraries whose numbers are quoted.

    BLEU      100 BP exp(mean over n = 1..4 of log p_n),   BP = min(1, exp(1 - R / W))
              p_n: share of the n-grams written that stand in some reference; W words written, R those of the nearest references
    ROUGE-L   2 P R / (P + R),  P = l / words written,  R = l / words of the reference,  l their longest common subsequence;
              the best of a text's references, and the mean over the texts
    exact     share of the texts that are one of their references

BLEU: Papineni, Roukos, Ward, Zhu, ACL 2002, section 2; Post, WMT 2018, arXiv:1804.08771 (``sacrebleu``, from 0 to 100).
ROUGE-L: Lin, ACL workshop Text Summarization Branches Out, 2004, section 3.1 (``rouge-score``, from 0 to 1).
"""

import re
import unicodedata

import numpy as np

TEXT_METRICS = ("bleu", "rouge_l", "exact")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # those of sacrebleu that need no other library
# Hiragana and katakana, the Chinese characters, those of them that are written for compatibility, and the rarer ones.
ALONE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


# ---- the libraries ---------------------------------------------------------------------------------------------


def _missing(name):
    return ValueError(f"{name}: the library is not installed, and texts are not scored without it; "
                      'in the project\'s folder run: pip install ".[seq2seq]"')


def _sacrebleu():
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise _missing("sacrebleu") from None
    return BLEU


def _rouge_score():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge-score") from None
    return RougeScorer


def check_libraries():
    """Raise ValueError, saying what to install, where a library is missing; for before a long run."""
    _sacrebleu()
    _rouge_score()


# ---- scores ----------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer for ``rouge-score``: runs of letters, digits and marks, in lower case; a Chinese or Japanese character is a
    word. On ASCII it is the library's own, which drops every other letter and so gives a Chinese text 0."""

    def tokenize(self, text):
        """The words of a text."""
        return "".join(f" {c} " if ALONE.match(c) else c if unicodedata.category(c)[0] in "LMN" else " "
                       for c in text.lower()).split()


def bleu(written, references, tokenizer="13a"):
    """BLEU of a corpus, from 0 to 100, with sacrebleu's defaults; 0 for no texts.

    Args:
        written: N texts. references: for each a sequence of at least one text.
        tokenizer: one of `BLEU_TOKENIZERS`, which cuts into words: ``13a``, for languages with spaces (the default of
            sacrebleu and of most papers), ``intl`` (by Unicode's classes), ``zh`` (each Chinese character is a word), ``char``,
            ``none`` (at white space only).

    Raises ValueError for an unknown tokenizer and where the library is missing.
    """
    if tokenizer not in BLEU_TOKENIZERS:
        raise ValueError(f"bleu_tokenizer: expected one of {', '.join(BLEU_TOKENIZERS)}, got {tokenizer!r}")
    if not written:
        return 0.0
    # The library wants as many references for each text, by position; None is one that is not there. An empty text in its
    # place would count: as the nearest reference of a short text it would lift the brevity penalty.
    most = max(map(len, references))
    streams = [[own[k] if k < len(own) else None for own in references] for k in range(most)]
    return float(_sacrebleu()(tokenize=tokenizer, force=True).corpus_score(written, streams).score)  # force: no warnings


def rouge_l(written, references):
    """Mean ROUGE-L F-measure, from 0 to 1, each text with its best reference; 0 for no texts. The words are `Words`'."""
    scorer = _rouge_score()(["rougeL"], tokenizer=Words())
    values = [scorer.score_multi(own, text)["rougeL"].fmeasure for text, own in zip(written, references, strict=True)]
    return float(np.mean(values)) if values else 0.0


def exact(written, references):
    """Share of the texts that are one of their references, but for white space, which tokenizers put around punctuation or leave
    out as they like; 0 for none."""
    plain = lambda text: re.findall(r"\w+|[^\w\s]", text)
    hits = [plain(text) in map(plain, own) for text, own in zip(written, references, strict=True)]
    return float(np.mean(hits)) if hits else 0.0


def text_scores(written, references, bleu_tokenizer="13a"):
    """{"bleu", "rouge_l", "exact"} of N texts, each with its references."""
    return {"bleu": bleu(written, references, bleu_tokenizer), "rouge_l": rouge_l(written, references),
            "exact": exact(written, references)}


def without_spaces(references):
    """Whether most of the letters in these texts are Chinese or Japanese, which BLEU's ``13a`` does not cut into words."""
    letters = [c for own in references for text in own for c in text if c.isalpha()]
    return 2 * sum(ALONE.match(c) is not None for c in letters) > len(letters)
