"""What ``minipeft predict`` does: classes with their probabilities, or the perplexity of a text."""

from ..data import Dataset, Example, Tokenizer, read_dataset, read_texts
from ..interop import load_pretrained, load_with_adapter
from ..models import ClassificationHead, LMHead
from ..nn import unwrap
from ..training import Classification, LanguageModelling


def predict(args):
    """Predict with a model, and an adapter where one is given.

    Args:
        args: the command's arguments (model, adapter, data or text, text2, split, max_length, batch_size).

    Returns:
        (rows, summary): rows of text for standard output, and ``{"lines", "json"}``, a summary for people and for files.
    """
    tokenizer = Tokenizer.from_folder(args.model)
    model = load_with_adapter(args.model, args.adapter)[0] if args.adapter else load_pretrained(args.model)
    head = unwrap(model.head)
    if isinstance(head, ClassificationHead):
        return _classes(args, model, tokenizer)
    if isinstance(head, LMHead):
        return _perplexity(args, model, tokenizer)
    raise ValueError(f"{args.model}: this model has no classification or language-model head; give the --adapter that brings one")


def _limit(args, model):
    config = model.config
    return args.max_length if config.rotary else min(args.max_length, config.max_position_embeddings)


def _classes(args, model, tokenizer):
    labels = model.config.labels
    if args.text is not None:
        dataset = Dataset({"test": [Example(args.text, args.text2, None)]}, labels)
    else:
        dataset = read_dataset(args.data, labels=labels, need_labels=False, split=False)
    split = args.split or next((s for s in ("test", "dev", "train") if s in dataset.splits), None)
    if split not in dataset.splits:
        raise ValueError(f"{args.data}: no {split} split; there are: {', '.join(dataset.splits)}")
    examples = dataset.splits[split]
    work = Classification(tokenizer, Dataset({split: examples}, labels), _limit(args, model), args.batch_size)
    p = work.predict(model, split)  # (N, C)
    best = p.argmax(axis=1)
    rows = [(labels[k], f"{p[i, k]:.4f}", e.text if e.text2 is None else f"{e.text}\t{e.text2}")
            for i, (k, e) in enumerate(zip(best, examples))]
    lines = [f"note: {work.truncated} texts were cut to {_limit(args, model)} tokens"] if work.truncated else []
    out = {"split": split, "predictions": [{"label": labels[k], "probabilities": dict(zip(labels, map(float, row)))} for k, row in zip(best, p)]}
    if args.text is None and all(e.label is not None for e in examples):
        out["scores"] = work.evaluate(model, split)
        lines.append(f"accuracy {out['scores']['accuracy']:.4f} on the {len(examples)} texts of {split}")
    return rows, {"lines": lines, "json": out}


def _perplexity(args, model, tokenizer):
    texts = {"test": args.text} if args.text is not None else read_texts(args.data)
    split = args.split or ("test" if "test" in texts else "dev")
    work = LanguageModelling(tokenizer, {split: texts[split]}, _limit(args, model), args.batch_size)
    scores = work.evaluate(model, split)
    rows = [("perplexity", f"{scores['score']:.4f}"), ("nats a token", f"{scores['loss']:.4f}")]
    return rows, {"lines": [], "json": {"split": split, **scores}}
