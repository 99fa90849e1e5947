"""What ``minipeft predict`` does: classes with their probabilities, the perplexity of a text, or texts written for others."""

import re
import sys
from pathlib import Path

import numpy as np

from ..data import Dataset, Example, Source, Tokenizer, make_batches
from ..interop import load_pretrained, load_with_adapter
from ..models import ClassificationHead, LMHead, Seq2SeqLMHead
from ..nn import unwrap
from ..training import Classification, LanguageModelling, Sequence2Sequence, end_tokens
from ..training.display import ProgressBar
from .exits import LOOSENESS, RULE, leaving_from
from .run import load_config, longest, notes_on_data
from .sources import manual_line, name_of, read


def load(model, adapter, task=None):
    """A command's model, with its adapter where one is given; what there is to know of it goes to standard error."""
    if adapter is None:
        return load_pretrained(model, task=task)
    loaded, attachment = load_with_adapter(model, adapter)
    if attachment.note:
        print(f"note: {attachment.note}", file=sys.stderr)
    return loaded


def predict(args):
    """Predict with a model, and an adapter where one is given.

    Args:
        args: the command's arguments (model, adapter, data or text, text2, split, max_length, max_target_length,
            bleu_tokenizer, batch_size, exit_rule, looseness).

    Returns:
        (rows, summary): rows of text for standard output, and ``{"lines", "json"}``, a summary for people and for files; what is
        said of the manual names the version of Python, whose text it is.
    """
    rows, summary = _predicted(args)
    if args.data is not None:
        summary["json"]["data"] = name_of(args.data)
        summary["lines"] += manual_line(args.data)
    return rows, summary


def _predicted(args):
    """(rows, summary) of `predict`, which does not name the data."""
    if args.text is None and args.text2 is not None:
        raise ValueError("--text2 is the second text of a pair; give the first with --text")
    if args.split is not None and (args.data is None or Path(args.data).is_file()):
        raise ValueError("--split chooses a part of a folder; give the folder with --data")
    tokenizer = Tokenizer.from_folder(args.model)
    model = load(args.model, args.adapter, "seq2seq" if load_config(args.model).encoder_decoder else None)
    head = unwrap(model.head)
    early = args.exit_rule is not None or args.looseness is not None
    if isinstance(head, ClassificationHead):
        used = model
        if early:
            looseness = LOOSENESS if args.looseness is None else args.looseness
            used = leaving_from(model, args.model, args.exit_rule or RULE, looseness)
        return _classes(args, model, used, tokenizer)
    if early:
        raise ValueError("--exit-rule and --looseness: texts leave early at classifiers, and this model has none; leave them out")
    if isinstance(head, Seq2SeqLMHead):  # which is an LMHead, too
        return _texts(args, model, tokenizer)
    if isinstance(head, LMHead):
        return _perplexity(args, model, tokenizer)
    raise ValueError(f"{args.model}: this model has no classification or language-model head; give the --adapter that brings one")


def taken(model):
    """How many of the learned positions virtual tokens take."""
    return model.embed.tokens.virtual + model.positions.shift


def _chosen(args, parts):
    """The part of the data to predict: the one asked for, else test, else dev, else train."""
    split = args.split or next(name for name in ("test", "dev", "train") if name in parts)
    if split not in parts:
        raise ValueError(f"{args.data}: no {split} split; there are: {', '.join(parts)}")
    return split


def shown(text):
    """A text on one line and in one column."""
    return re.sub(r"[\t\r\n]", " ", text)


def texts_of(count, split):
    """So many texts of a split, in words."""
    return f"{count:,} text{'s' * (count != 1)} of {split}"


def score_line(examples, split, scores):
    """The accuracy of a split among ``scores``, in words; where it has none, because texts have no label."""
    unknown, whole = sum(e.label is None for e in examples), texts_of(len(examples), split)
    if not unknown:
        return f"accuracy {scores['accuracy']:.4f} on the {whole}"
    which = f"the {whole}" if unknown == len(examples) else f"{unknown:,} of the {whole}"
    return f"not scored: {which} {'has' if unknown == 1 else 'have'} no label"


def _classes(args, model, used, tokenizer):
    """What ``used``, the model or the model with its exits, makes of the texts."""
    labels = model.config.labels
    if args.text is not None:
        dataset = Dataset({"test": [Example(args.text, args.text2, None)]}, labels)
    else:
        dataset = read(args.data, "classify", labels=labels, need_labels=False, split=False)
    split, limit = _chosen(args, dataset.splits), longest(args.max_length, model.config, taken(model))
    examples = dataset.splits[split]
    work = Classification(tokenizer, Dataset({split: examples}, labels), limit, args.batch_size)
    p = work.predict(used, split)  # (N, C)
    best = p.argmax(axis=1)
    rows = [(labels[k], f"{p[i, k]:.4f}", *(shown(text) for text in (e.text, e.text2) if text is not None))
            for i, (k, e) in enumerate(zip(best, examples))]
    lines = notes_on_data(work, limit)
    out = {"split": split, "predictions": [{"label": labels[k], "probabilities": dict(zip(labels, map(float, row)))}
                                           for k, row in zip(best, p)]}
    if used is not model:
        order = np.concatenate(make_batches(work.encodings[split], 2 * args.batch_size))  # in which `predict` goes through them
        layers = np.concatenate(used.layers)[np.argsort(order)]  # (N,)
        for row, layer in zip(out["predictions"], layers.tolist()):
            row["layer"] = layer
        lines.append(f"left at layer {layers.mean():.2f} of {model.config.num_hidden_layers} on average")
    if args.text is None:
        scores = work.evaluate(used, split)
        lines.append(score_line(examples, split, scores))
        out |= {"scores": scores} if scores else {}
    return rows, {"lines": lines, "json": out}


def _perplexity(args, model, tokenizer):
    if args.text2 is not None:
        raise ValueError("--text2: a language model reads one text, not a pair")
    texts = {"test": args.text} if args.text is not None else read(args.data, "lm", split=False)
    split = _chosen(args, texts)
    limit = longest(args.max_length, model.config, taken(model))
    work = LanguageModelling(tokenizer, {split: texts[split]}, limit, args.batch_size)
    scores = work.evaluate(model, split)
    rows = [("perplexity", f"{scores['score']:.4f}"), ("nats a token", f"{scores['loss']:.4f}")]
    return rows, {"lines": [], "json": {"split": split, **scores}}


def _texts(args, model, tokenizer):
    if args.text is not None:
        sources = {"test": [Source(args.text, () if args.text2 is None else (args.text2,))]}
    else:
        sources = read(args.data, "seq2seq", need_references=False, split=False)
    split, limit = _chosen(args, sources), longest(args.max_length, model.config, taken(model))
    work = Sequence2Sequence(tokenizer, {split: sources[split]}, end_tokens(model.config, tokenizer), limit,
                             args.max_target_length, args.batch_size, bleu_tokenizer=args.bleu_tokenizer)
    display = ProgressBar("predict")
    work.progress = display.evaluating
    try:
        written = work.write(model, split)
    finally:
        display.stop()
    lines, known = notes_on_data(work, limit), sum(bool(source.references) for source in sources[split])
    out = {"split": split, "predictions": [{"source": source.text, "text": text, "references": list(source.references)}
                                           for source, text in zip(sources[split], written)]}
    if not known and args.text is None:
        lines.append(f"not scored: the sources of {split} have no reference")
    if known:
        out["scores"] = work.scores(written, split)
        all_known = f"the sources of {split} ({known})"
        which = all_known if known == len(written) else f"{known} of the {len(written)} sources of {split}"
        lines += [f"{name} {value:.4f} on {which}" for name, value in out["scores"].items() if name != "score"]
    return [(shown(text),) for text in written], {"lines": lines, "json": out}
