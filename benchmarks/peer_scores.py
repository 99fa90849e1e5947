"""The scores of HF PEFT and AdapterHub on the task of a comparison: the same texts in the same batches, the same settings.

What is the same as in ``minipeft compare``: model, texts, batches and their order, epochs, AdamW, the learning rate of each method
and its schedule, clipping, weight decay on matrices only, the method's own settings and places, and that of the head only the
classifier is trained (in full fine-tuning the pooler as well). What is not: random draws, and how some methods start (AdapterHub's
adapters near zero, ours at zero).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from . import common

EXAMPLE = """example, half an hour after `minipeft compare --model ../shared/models/minilm --data ../shared/data/sst2 --train-limit
2000 --epochs 2 --pooling pooler --out runs/sst2`:
  python -m benchmarks.peer_scores --results runs/sst2/results.json
"""
METHODS = ("full", "head", "top_k", "bitfit", "ia3", "lora", "houlsby", "prefix", "prompt")
MORE = ("layernorm", "rslora", "lora_plus", "dora", "pissa", "pfeiffer", "parallel", "compacter")
MARGIN = 0.01  # one point: how far ours may lie below theirs
LORA_MAPS = ["query", "value"]
IA3_MAPS, IA3_INNER = r".*\.(key|value)|.*\.layer\.\d+\.output\.dense", r".*\.layer\.\d+\.output\.dense"


# ---- the methods, in the libraries' words ----------------------------------------------------------------------


def with_peft(model, config):
    """The model with one of PEFT's methods; PEFT trains the classifier beside it, and not the pooler."""
    from peft import get_peft_model

    return get_peft_model(model, config)


def peft_config(name, own):
    """PEFT's configuration of the method ``name`` with minipeft's settings ``own``; None for what is not PEFT's."""
    import peft

    if name in ("lora", "rslora", "lora_plus", "dora", "pissa"):
        more = {"rslora": {"use_rslora": True}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}.get(name, {})
        return peft.LoraConfig(task_type="SEQ_CLS", r=own.rank, lora_alpha=own.alpha, lora_dropout=own.dropout,
                               target_modules=LORA_MAPS, **more)
    if name == "ia3":
        return peft.IA3Config(task_type="SEQ_CLS", target_modules=IA3_MAPS, feedforward_modules=IA3_INNER)
    if name == "layernorm":
        return peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"])
    if name == "prefix":
        return peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=own.num_virtual_tokens)
    if name == "prompt":
        return peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=own.num_virtual_tokens,
                                       prompt_tuning_init="SAMPLE_VOCAB")
    return None


def with_adapters(model, name, own):
    """The model with one of AdapterHub's bottleneck adapters."""
    import adapters

    kind = {"houlsby": adapters.DoubleSeqBnConfig, "pfeiffer": adapters.SeqBnConfig, "parallel": adapters.ParBnConfig,
            "compacter": adapters.CompacterConfig}[name]
    settings = {"reduction_factor": model.config.hidden_size / own.bottleneck,
                "non_linearity": {"silu": "swish"}.get(own.activation, own.activation)}
    if name == "parallel":
        settings["scaling"] = own.scale
    adapters.init(model)
    model.add_adapter("mine", config=kind(**settings), set_active=True)
    model.train_adapter("mine")
    for parameter in model.classifier.parameters():
        parameter.requires_grad_(True)
    return model


def prepared(name, own, folder, classes):
    """transformers' classifier in ``folder`` with the method ``name`` on it, ready to train."""
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()  # that the classifier is fresh
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)
    if name in ("houlsby", "pfeiffer", "parallel", "compacter"):
        return with_adapters(model, name, own)
    config = peft_config(name, own)
    if config is not None:
        return with_peft(model, config)
    blocks = len(model.bert.encoder.layer)
    top = tuple(f"bert.encoder.layer.{i}." for i in range(blocks - getattr(own, "layers", 0), blocks))
    trained = {"full": lambda path: True, "head": lambda path: False, "top_k": lambda path: path.startswith(top),
               "bitfit": lambda path: path.endswith(".bias")}[name]
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(trained(path) or path.startswith("classifier."))
    return model


# ---- training as minipeft does it ------------------------------------------------------------------------------


def optimizer_of(model, name, own, lr):
    """AdamW with decay on matrices only; LoRA+ has a higher rate for B, which is our V."""
    import torch

    groups = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = lr * (own.lr_ratio if name == "lora_plus" and "lora_B" in path else 1.0)
            groups.setdefault((rate, 0.01 if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW([{"params": parameters, "lr": rate, "weight_decay": decay}
                              for (rate, decay), parameters in groups.items()], lr=lr)


def tensors_of(batch):
    """A batch of minipeft's as what transformers takes."""
    import torch

    return {"input_ids": torch.from_numpy(batch.input_ids), "attention_mask": torch.from_numpy(batch.attention_mask).long(),
            "token_type_ids": torch.from_numpy(batch.token_type_ids), "labels": torch.from_numpy(batch.labels)}


def accuracy(model, work, split):
    """The share of a split's texts that the model classifies rightly."""
    import numpy as np
    import torch

    right, model = 0, model.eval()
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(work.targets[split])), -(-len(work.targets[split]) // 32)):
            batch = tensors_of(work.collate(rows, split))
            right += int((model(**batch).logits.argmax(dim=1) == batch["labels"]).sum())
    return right / len(work.targets[split])


def train(run, work):
    """Train one method with one seed; returns what is to be kept of it."""
    import numpy as np
    import torch

    from minipeft.training.loop import ORDER
    from minipeft.training.schedules import factor

    torch.manual_seed(run.seed)
    own, settings = run.make_method(None), run.settings()
    model = prepared(run.method, own, run.model, len(work.labels))
    optimizer = optimizer_of(model, run.method, own, settings.lr)
    total, started, step = settings.epochs * work.number_of_batches(), time.perf_counter(), 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(settings.schedule, min(step, total - 1), total, round(settings.warmup * total)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for epoch in range(settings.epochs):
        for rows in work.training_batches(np.random.default_rng([settings.seed, ORDER, epoch])):
            model.train()
            loss = model(**tensors_of(work.collate(rows))).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            schedule.step()
            step += 1
    return {"method": run.method, "seed": run.seed, "accuracy": accuracy(model, work, "dev"), "lr": settings.lr, "steps": step,
            "trainable": sum(parameter.numel() for parameter in trained), "seconds": time.perf_counter() - started}


# ---- the command -----------------------------------------------------------------------------------------------


def measure(args):
    """Each method with each seed, those that lie in ``--out`` read from there: {method: [result]}."""
    from minipeft.compare.run import Run, load_config, make_work
    from minipeft.data import Tokenizer

    out, results, times = Path(args.out), {}, []
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for name in args.methods for seed in range(args.seeds)]
    for number, (name, seed) in enumerate(jobs, 1):
        path = out / f"{name}-seed{seed}.json"
        asked = {"train_limit": args.train_limit, "epochs": args.epochs, "model": args.model, "data": args.data}
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found is None or found["asked"] != asked:
            run = Run(args.model, args.data, name, seed=seed, pooling="pooler", epochs=args.epochs, train_limit=args.train_limit)
            work = make_work(run, Tokenizer.from_folder(run.model), load_config(run.model))
            found = {**train(run, work), "asked": asked}
            times.append(found["seconds"])
            common.write_json(path, found)
            left = statistics.mean(times) * (len(jobs) - number)
            print(f"[{number}/{len(jobs)}] {name} seed {seed}: accuracy {found['accuracy']:.4f} on dev, {found['seconds']:.0f} s; "
                  f"at most {left / 60:.0f} min left", file=sys.stderr, flush=True)
        results.setdefault(name, []).append(found)
    return results


def spread(values):
    """"mean ± standard deviation" of scores."""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def compared(results, ours):
    """Rows of the table, and for each method by how much ours lies above theirs (None where it was not run)."""
    rows, gaps = [], {}
    for name, found in results.items():
        theirs = [each["accuracy"] for each in found]
        mine = next((row for row in ours if row["label"] == name), None)
        gaps[name] = None if mine is None else mine["score"] - statistics.mean(theirs)
        same = mine is not None and mine["trainable"] == found[0]["trainable"]
        rows.append([name, f"{found[0]['lr']:g}", f"{found[0]['trainable']:,}" + ("" if same or mine is None else " (!)"),
                     spread(theirs), "-" if mine is None else spread(mine["scores"]),
                     "-" if mine is None else f"{gaps[name]:+.4f}" + ("" if gaps[name] >= -MARGIN else " (!)")])
    return rows, gaps


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="../shared/models/minilm", help="folder of a BERT with a pooler")
    parser.add_argument("--data", default="../shared/data/sst2", help="folder with train and dev")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {', '.join((*METHODS, *MORE))}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="results.json of minipeft's own comparison, to stand beside")
    parser.add_argument("--out", default="runs/peer-scores", help="folder of finished runs, which are not repeated")
    parser.add_argument("--json", help="file for the table")
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    unknown = [name for name in args.methods if name not in (*METHODS, *MORE)]
    missing = [path for path in (args.model, args.data, args.results) if path and not Path(path).exists()]
    if unknown or missing:
        sys.exit(f"peer_scores: --methods has no {unknown[0]}" if unknown else f"peer_scores: {missing[0]}: no such file or folder")
    common.set_threads(args.threads)
    results = measure(args)
    ours = json.loads(Path(args.results).read_text(encoding="utf-8"))["rows"] if args.results else []
    rows, gaps = compared(results, ours)
    common.print_table("accuracy on dev", ["method", "rate", "trained", "PEFT, AdapterHub", "minipeft", "difference"], rows)
    if args.json:
        common.write_json(args.json, {"runs": results, "differences": gaps})


if __name__ == "__main__":
    main()
