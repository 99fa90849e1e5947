"""Accuracy on dev of other libraries' fine-tuning methods, with minipeft's data, settings and placement, beside minipeft's own.

PyTorch and transformers train; HF PEFT has most methods, AdapterHub the bottleneck adapters, and full, head, top_k and bitfit are
a choice of parameters (``requires_grad``). A run is described by minipeft's own `Run`, from which all this is taken:

    data        the drawn sentences, their tokens, the batches and the order of these
    settings    learning rate, warm-up and schedule, epochs, AdamW, weight decay on matrices only, clipping
    placement   what a method adapts or trains, rank, alpha, bottleneck, number of virtual tokens; the head as minipeft draws it,
                whose classifier is trained, and whose pooler only by full and (its bias) by bitfit

The number of trained parameters must be minipeft's. What is not the same: the draws of dropout and of what a method adds; how
this starts, which is the library's own choice (AdapterHub's adapters near zero, ours at zero; PEFT's prefix with a standard
deviation of 1, ours of 0.5); AdaLoRA's orthogonality penalty (PEFT's is a mean of norms, ours a sum of squares); and LoRA+'s rate
for the classifier's bias (PEFT's is the higher one).
"""

import argparse
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from . import common

EXAMPLE = """example (half an hour on one core; the comparison whose results are read takes about as long):
  python -m minipeft compare --model ../shared/models/minilm --data ../shared/data/sst2 --train-limit 2000 --epochs 2 \\
      --pooling pooler --out runs/pooler
  python -m benchmarks.peer_scores --model ../shared/models/minilm --data ../shared/data/sst2 --results runs/pooler/results.json
"""
MAIN = ("full", "head", "top_k", "bitfit", "ia3", "lora", "houlsby", "prefix", "prompt")  # compare's, without early exit
CHOICE = ("full", "head", "top_k", "bitfit")                                              # those that choose parameters only
HUB = {"houlsby": "DoubleSeqBnConfig", "pfeiffer": "SeqBnConfig", "parallel": "ParBnConfig", "compacter": "CompacterConfig"}
MARGIN = 0.01                                                                             # ours may lie one point below
BETAS, EPS = (0.9, 0.999), 1e-8                                                           # of AdamW, on both sides


# ---- a method in another library -------------------------------------------------------------------------------


def their_names(ours, paths):
    """What transformers calls parameters of a minipeft model."""
    from minipeft.interop.hf_names import places

    table = places(ours.config, "classification")
    return [table[path].key for path in paths]


def their_modules(ours, paths):
    """What transformers calls modules with a weight."""
    return [name.removesuffix(".weight") for name in their_names(ours, [f"{path}.weight" for path in paths])]


def lora_config(method, ours, total):
    """PEFT's configuration for LoRA and its kin, on the maps that minipeft adapts; PiSSA's scale is 1 here, not alpha / rank."""
    import peft

    from minipeft.methods.targets import linear_paths

    alpha = method.rank if method.name == "pissa" else method.alpha
    common_part = {"task_type": "SEQ_CLS", "lora_alpha": alpha, "lora_dropout": method.dropout,
                   "target_modules": their_modules(ours, method.places(linear_paths(ours)))}
    if method.name == "adalora":
        return peft.AdaLoraConfig(init_r=method.rank, target_r=method.target_rank, tinit=round(method.warmup * total),
                                  tfinal=round(method.final * total), deltaT=method.interval, beta1=method.beta1,
                                  beta2=method.beta2, orth_reg_weight=method.orthogonality, total_step=total, **common_part)
    return peft.LoraConfig(r=method.rank, use_rslora=method.name == "rslora", use_dora=method.name == "dora",
                           init_lora_weights="pissa" if method.name == "pissa" else True, **common_part)


def ia3_config(method, ours, total):
    """PEFT's for (IA)3; its own default would also scale what enters attention's output map."""
    import peft

    from minipeft.methods.targets import linear_paths

    chosen = method.places(linear_paths(ours))
    return peft.IA3Config(task_type="SEQ_CLS", target_modules=their_modules(ours, chosen),
                          feedforward_modules=their_modules(ours, [path for path, at_input in chosen.items() if at_input]))


def norm_config(method, ours, total):
    """PEFT's for the tuning of norms."""
    import peft

    norms = [path.removesuffix(".weight") for path in method.base_parameters(ours) if path.endswith(".weight")]
    return peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=their_modules(ours, norms))


def prefix_config(method, ours, total):
    """PEFT's for a prefix."""
    import peft

    return peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=method.num_virtual_tokens)


def prompt_config(method, ours, total):
    """PEFT's for a soft prompt that starts from word vectors, as ours does."""
    import peft

    return peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=method.num_virtual_tokens,
                                   prompt_tuning_init="SAMPLE_VOCAB")


PEFT = {**dict.fromkeys(("lora", "rslora", "lora_plus", "dora", "pissa", "adalora"), lora_config), "ia3": ia3_config,
        "layernorm": norm_config, "prefix": prefix_config, "prompt": prompt_config}
METHODS = (*MAIN, *(name for name in (*PEFT, *HUB) if name not in MAIN))


def library(name):
    """Whose version of a method this is."""
    return "AdapterHub" if name in HUB else "PEFT" if name in PEFT else "transformers"


def with_choice(model, method, ours):
    """Train the parameters that minipeft would train in place, and the classifier."""
    chosen = set(their_names(ours, method.base_parameters(ours)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or name.startswith("classifier."))
    return model


def with_adapters(model, method, ours):
    """Put AdapterHub's adapters of the same kind and size on the model; they train with the classifier."""
    import adapters

    settings = {"reduction_factor": ours.config.hidden_size / method.bottleneck, "non_linearity": method.activation,
                "scaling": method.scale, "dropout": method.dropout}
    if method.name == "compacter":
        settings["phm_dim"] = method.num_factors
    adapters.init(model)
    model.add_adapter("peer", config=getattr(adapters, HUB[method.name])(**settings))
    model.train_adapter("peer")
    model.classifier.requires_grad_(True)
    return model


def make_peer(run, labels, total):
    """transformers' BERT with the classes ``labels``, minipeft's head and another library's version of a run's method on it.

    ``total``: steps of the training. Raises ValueError where other parameters would be trained than in minipeft, by their number.
    """
    import peft
    import torch
    from transformers import BertForSequenceClassification

    from minipeft.compare.run import load_for
    from minipeft.data import files
    from minipeft.interop.hf_names import places, to_theirs
    from minipeft.methods import attach

    torch.manual_seed(run.seed)
    ours, method = load_for(run, labels, run.seed), run.make_method()
    model = BertForSequenceClassification.from_pretrained(files.model_folder(run.model), num_labels=len(labels))
    head = {path: p.data for path, p in ours.named_parameters() if path.startswith("head.")}
    head = {name: torch.from_numpy(array) for name, array in to_theirs(places(ours.config, "classification"), head).items()}
    model.load_state_dict(head, strict=False)
    if run.method in CHOICE:
        model = with_choice(model, method, ours)
    elif run.method in HUB:
        model = with_adapters(model, method, ours)
    else:
        model = peft.get_peft_model(model, PEFT[run.method](method, ours, total))
    trained, expected = sum(p.numel() for p in model.parameters() if p.requires_grad), attach(ours, method).trainable
    if trained != expected:
        raise ValueError(f"{run.method}: {library(run.method)} trains {trained:,} parameters, minipeft {expected:,}")
    return model


# ---- training --------------------------------------------------------------------------------------------------


def make_optimizer(model, method, settings):
    """AdamW with weight decay on matrices only; PEFT stores some of our vectors as matrices of one row or column."""
    import torch

    if method.name == "lora_plus":
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(model, torch.optim.AdamW, lr=settings.lr, loraplus_lr_ratio=method.lr_ratio,
                                         loraplus_weight_decay=settings.weight_decay, betas=BETAS, eps=EPS)
    trained = [p for p in model.parameters() if p.requires_grad]
    matrix = lambda p: p.squeeze().ndim > 1
    groups = [{"params": [p for p in trained if matrix(p)], "weight_decay": settings.weight_decay},
              {"params": [p for p in trained if not matrix(p)], "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr, betas=BETAS, eps=EPS)


def tensors(input_ids, attention_mask, token_type_ids):
    """A batch as transformers takes it."""
    import torch

    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask).long(),
            "token_type_ids": torch.from_numpy(token_type_ids)}


class AsOurs:
    """A PyTorch model that is called, without gradients, like one of minipeft's."""

    def __init__(self, model):
        self.model = model.eval()

    def __call__(self, *batch):
        import torch

        with torch.no_grad():
            return SimpleNamespace(logits=SimpleNamespace(data=self.model(**tensors(*batch)).logits.numpy()))


def train(model, method, work, settings, listen=lambda said: None):
    """Train as `minipeft.training.fit` does; returns the loss of each step. ``listen`` is told of each."""
    import numpy as np
    import torch

    from minipeft.training.loop import ORDER
    from minipeft.training.schedules import factor

    total = settings.epochs * work.number_of_batches()
    optimizer, losses = make_optimizer(model, method, settings), []
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(settings.schedule, step, total, round(settings.warmup * total)))
    trained = [p for p in model.parameters() if p.requires_grad]
    for epoch in range(settings.epochs):
        model.train()
        for indices in work.training_batches(np.random.default_rng([settings.seed, ORDER, epoch])):
            batch = work.collate(indices)
            inputs = tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            loss = model(**inputs, labels=torch.from_numpy(batch.labels)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            if method.name == "adalora":
                model.base_model.update_and_allocate(len(losses))
            schedule.step()
            losses.append(loss.item())
            listen({"step": len(losses), "total": total, "loss": losses[-1]})
    return losses


def execute(run, listen=lambda said: None):
    """One run; returns what its ``result.json`` holds besides the description of the run."""
    from minipeft.compare.run import load_config, make_work
    from minipeft.data import Tokenizer

    started, config = time.monotonic(), load_config(run.model)
    if config.model_type != "bert":
        raise ValueError(f"{run.model}: expected a BERT, whose pooler the peers read, got {config.model_type}")
    work, settings = make_work(run, Tokenizer.from_folder(run.model), config), run.settings()
    if "dev" not in work.encodings:
        raise ValueError(f"{run.data}: no dev file, which is what is scored; there are: {', '.join(work.encodings)}")
    model = make_peer(run, work.labels, settings.epochs * work.number_of_batches())
    losses = train(model, run.make_method(), work, settings, listen)
    scores = work.evaluate(AsOurs(model), "dev")
    return {"library": library(run.method), "metric": work.metric, "split": "dev", "score": scores["score"], "scores": scores,
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad), "lr": settings.lr, "steps": len(losses),
            "losses": losses, "seconds": time.monotonic() - started}


# ---- all runs, and a comparison's ------------------------------------------------------------------------------


def described(run):
    """The fields of a `Run`, given as they are or as a file holds them, the model and the data by their names alone."""
    from minipeft.compare.sources import name_of

    asked = run if isinstance(run, dict) else asdict(run)
    return {**asked, "model": name_of(asked["model"]), "data": name_of(asked["data"])}


def check_same(run, path, found, advice):
    """Raise ValueError where the file ``path`` holds another run than this one."""
    from minipeft.compare.run import option

    asked, found = described(run), described(found)
    other = [f"{option(name)} is {found.get(name)!r} there and {value!r} here" for name, value in asked.items()
             if found.get(name) != value]
    if other:
        raise ValueError(f"{path}: holds a run with other settings ({'; '.join(other)}); {advice}")


def make_jobs(args):
    """The `Job` of each method with each seed."""
    from minipeft.compare.processes import Job
    from minipeft.compare.run import Run

    return [Job(Run(args.model, args.data, method, pooling="pooler", train_limit=args.train_limit, epochs=args.epochs, seed=seed),
                Path(args.out) / f"{method}-seed{seed}", f"{method} seed {seed}")
            for method in args.methods for seed in range(args.seeds)]


def run_jobs(jobs):
    """{(method, seed): result} of all jobs; those that finished before are read."""
    from minipeft.compare.board import Board
    from minipeft.compare.processes import Outcome
    from minipeft.compare.run import RESULT
    from minipeft.data import files

    out = {}
    for job in jobs:
        if (job.folder / RESULT).is_file():
            found = files.read_json(job.folder / RESULT, "result")
            check_same(job.run, job.folder / RESULT, found.get("run", {"model": "", "data": ""}), "choose another --out")
            out[job.run.method, job.run.seed] = found
    with Board(len(jobs)) as board:
        for job in jobs:
            board.name(job)
            if (job.run.method, job.run.seed) in out:
                board.before(job)
        for job in jobs:
            if (job.run.method, job.run.seed) in out:
                continue
            result = execute(job.run, lambda said, job=job: board.listen(job, said))
            job.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(job.folder / RESULT, {"run": described(job.run), **result})
            out[job.run.method, job.run.seed] = result
            board.finished(Outcome(job, result))
    return out


def our_scores(path, jobs):
    """{method: [score of each seed]} of the methods that a comparison's ``results.json`` has.

    Raises ValueError where they are of other runs than the jobs, were scored otherwise, or are too few.
    """
    from minipeft.compare.run import RUN
    from minipeft.data import files

    results, out = files.read_json(path, "comparison"), {}
    rows = {(row["task"], row["label"]): row for row in results.get("rows", ())}
    for job in jobs:
        row, seed = rows.get((described(job.run)["data"], job.run.method)), job.run.seed
        if row is None:
            continue
        if (row["split"], row["metric"]) != ("dev", job.run.metric) or len(row["scores"]) <= seed:
            raise ValueError(f"{path}: expected {job.run.metric} on dev of {seed + 1} seeds or more for {job.run.method}, got "
                             f"{row['metric']} on {row['split']} of {len(row['scores'])}")
        description = Path(path).parent / row["runs"][seed] / RUN
        check_same(job.run, description, files.read_json(description, "run description"),
                   "run the comparison and this with the same settings")
        out.setdefault(job.run.method, []).append(row["scores"][seed])
    if not out:
        raise ValueError(f"{path}: holds none of the methods on {described(jobs[0].run)['data']}; expected results.json of "
                         "minipeft compare")
    return out


def summarise(jobs, results, ours):
    """A row for each method: {"method", "library", "lr", "trainable", "peer_scores", "peer", "peer_std", "ours_scores", "ours",
    "ours_std", "difference", "below"}; the last five are None where the comparison has no such method.
    """
    from minipeft.compare.table import mean_and_std

    rows = []
    for method in dict.fromkeys(job.run.method for job in jobs):
        same = [results[job.run.method, job.run.seed] for job in jobs if job.run.method == method]
        row = {"method": method, **{name: same[0][name] for name in ("library", "lr", "trainable")}}
        for side, scores in (("peer", [result["score"] for result in same]), ("ours", ours.get(method))):
            mean, std = mean_and_std(scores) if scores else (None, None)
            row |= {f"{side}_scores": scores, side: mean, f"{side}_std": std}
        row["difference"] = row["ours"] - row["peer"] if ours.get(method) else None
        rows.append({**row, "below": row["difference"] < -MARGIN if ours.get(method) else None})
    return rows


def show(rows, args):
    """Print the table."""
    from minipeft.compare.table import score_text

    text = lambda row, side: score_text(row[side], row[f"{side}_std"], args.seeds)
    points = lambda row: "-" if row["ours"] is None else f"{100 * row['difference']:+.2f}" + (" below" if row["below"] else "")
    common.print_table(
        f"accuracy on dev, seeds {args.seeds} (difference: ours - peer in points)",
        ["method", "peer", "rate", "trained", "minipeft", "peer's score", "difference"],
        [[r["method"], r["library"], f"{r['lr']:g}", f"{r['trainable']:,}", text(r, "ours"), text(r, "peer"), points(r)]
         for r in rows])


# ---- command ---------------------------------------------------------------------------------------------------


def arguments(argv):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_scores", description=__doc__, epilog=EXAMPLE,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a BERT model with its pooler")
    parser.add_argument("--data", required=True, help="folder with train and dev, two columns: text, label")
    parser.add_argument("--results", metavar="FILE", help="results.json of minipeft compare, to stand beside the peers' scores")
    parser.add_argument("--methods", default=",".join(MAIN), help=f"some of {', '.join(METHODS)} (default: {','.join(MAIN)})")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method, with seeds from 0 (3)")
    parser.add_argument("--train-limit", type=int, default=2000, help="training sentences, drawn as compare draws them (2000)")
    parser.add_argument("--epochs", type=int, default=2, help="how often each is seen (2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--out", default="runs/peer-scores", help="folder of the finished runs, which are not repeated "
                        "(runs/peer-scores)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args(argv)
    args.methods = list(dict.fromkeys(args.methods.split(",")))
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"--methods: expected some of {', '.join(METHODS)}, got {unknown[0]!r}")
    for name in ("seeds", "train_limit", "epochs", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    return args


def versions(methods):
    """{library: version} of what the methods need. Raises ValueError where one is not installed."""
    out, missing = {}, []
    for name in ("torch", "transformers", "peft", *["adapters"] * any(name in HUB for name in methods)):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ValueError(f'needs {" and ".join(missing)}; run: pip install ".[peers]"')
    return out


def measure(args):
    """Run what has not been run, and put it beside the comparison's results."""
    libraries, jobs = versions(args.methods), make_jobs(args)
    ours = our_scores(args.results, jobs) if args.results else {}
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()                # that the head is new, which is meant
    logging.getLogger("adapters").setLevel(logging.ERROR)     # that none is active yet when one is added
    warnings.filterwarnings("ignore", "Unsupported layer type")  # of LayerNorm, which LN tuning is for
    rows = summarise(jobs, run_jobs(jobs), ours)
    show(rows, args)
    if args.json:
        common.write_json(args.json, {"conditions": {**common.conditions(args.threads), **libraries}, "seeds": args.seeds,
                                      "train_limit": args.train_limit, "epochs": args.epochs, "rows": rows})


def main(argv=None):
    """Check, run, show."""
    args = arguments(argv)
    common.set_threads(args.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    try:
        measure(args)
    except (ValueError, OSError) as error:
        sys.exit(f"peer_scores: {error}")
    except KeyboardInterrupt:
        sys.exit(f"peer_scores: stopped; the runs that finished are in {args.out}, and the same command goes on from there")


if __name__ == "__main__":
    main()
