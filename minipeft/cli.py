"""The commands: ``minipeft finetune``, ``predict``, ``prompt``, ``compare``, ``plan``, ``pretrain``, ``generate``, ``doctor``.

Results go to standard output, progress to standard error. A user's error is one line and exit code 2;
``MINIPEFT_DEBUG=1`` shows the traceback instead.
"""

import argparse
import math
import os
import re
import sys
import textwrap
from pathlib import Path

from .arguments import (ABOVE_0, BELOW_1, BLEU_TOKENIZERS, COMPARED, EXIT_RULES, FROM_0, FROM_1, MAIN, METHODS, METRICS,
                        RUNS, SHARE, STRATEGIES, TASKS, UP_TO_1, add_method_settings, four_bits, given_settings, sweep, whole)

EXAMPLES = {
    "finetune": "minipeft finetune --model models/minilm --data data/sst2 --method lora --rank 8 --out runs/sst2-lora",
    "predict": 'minipeft predict --model models/minilm --adapter runs/sst2-lora --text "a gorgeous , witty film"',
    "prompt": 'minipeft prompt --model toy:encoder --template "{text} It was {mask} ." '
              '--verbalizer "great=positive,terrible=negative" --text "the soup was not bad ."',
    "compare": "minipeft compare --model models/minilm --data data/sst2 --methods full,head,lora --jobs 2 --out runs/sst2",
    "plan": "minipeft plan --model roberta-base --method lora --rank 8 --targets q,v",
    "pretrain": "minipeft pretrain --arch encoder --corpus python-docs --out models/manual",
    "generate": 'minipeft generate --model models/stories260K --prompt "Once upon a time" --max-new-tokens 100',
    "doctor": "minipeft doctor",
    "learn": "minipeft learn init course",
    "teach": "minipeft teach release course --students names.txt",
}


COMPARE_NOTE = """peak memory is the high-water mark of a run's own process, Python and its libraries included, the largest of its
seeds; the step is the median of all. Inference is the time of a forward pass over a batch of dev, and how many times the base's
it is, measured by turns in the same process. Runs beside each other share the memory's bandwidth: for times without neighbours
use --jobs 1. A comparison that was stopped goes on when the command is repeated. results.json, results.csv and results.md in
--out hold the table. The workers of --dask must see the same folders as this machine, and whoever
controls the scheduler controls them: use a cluster that you trust.

more examples:
  minipeft compare
  minipeft compare --data toy:rating --data toy:truth:hard --tune
  minipeft compare --methods full --sweep lora.rank=1,2,4,8,16 --sweep prefix.num_virtual_tokens=5,20
  minipeft compare --methods head,zero_shot,prompt_based,pet --shots 8 --unlabelled toy:rating

"""

PROMPT_NOTE = """\
{text} stands for the text, {text2} for the second of a pair, {mask} for the word that the model fills in. A verbalizer
names words for each class, word=class,word=class,...; each must be one token. With --ranking each class has one answer, of any
length.

  nothing else              zero-shot: the model as it is; one file, or texts without labels or train, are asked about as they
                            stand, and each text's class is printed
  --shots K                 in-context: K examples of each class, solved, stand before every text, as many as there is room for
  --method M                prompt-based fine-tuning by M, on all of train or with --shots on K of each class
  --shots K --unlabelled P  PET: several prompts (--template and --verbalizer several times) are fine-tuned, and label the
                            raw text at P, from which a classifier learns; with --generations iPET

With --shots the mean and the standard deviation over five draws are shown. A toy task has prompts of its own.

more examples:
  minipeft prompt --model toy:encoder --data toy:sentiment --calibrate
  minipeft prompt --model toy:encoder --data toy:rating --shots 8 --method lora --rank 4 --out runs/prompted
  minipeft prompt --model toy:encoder --data toy:rating --shots 4 --unlabelled toy:rating
  minipeft prompt --model toy:encoder --data toy:topic --shots 8 --search-words 5

"""

PLAN_NOTE = """the model may be a name, a folder with a config.json, or such a file; its weights are not read, and none are made.
{names}

more examples:
  minipeft plan --model bert-base --length 128 --batch-size 32
  minipeft plan --model llama-7b --method lora --base-bits 4 --flops 1e13 --tokens 5e6
  minipeft plan --model t5-v1_1-xl --four
  minipeft plan --papers

"""

PRETRAIN_NOTE = """the package's own models, toy:encoder, toy:decoder and toy:seq2seq, were made by this command with its
defaults; --verify makes them again and compares. Ctrl-C keeps what is done; --resume goes on.

more examples:
  minipeft pretrain --arch decoder --corpus stories.txt --steps 2000 --out models/stories
  minipeft pretrain --verify

"""

LEARN_NOTE = """without an action the course is watched: each save of the exercise's file is checked, and keys ask for more.

  init DIR           make a folder with the lessons and a file for each exercise
  check [ID]         check one exercise, or with --all every one
  hint [ID]          three hints, one at a time
  solution [ID]      the solution, once it has passed, or with --give-up after the third hint
  trace [ID]         the first step at which an answer departs from the solution
  list               every exercise, and what is solved
  reset ID           the stub again; what was written is kept
  update             bring the folder to this version of the course; what was written is kept
  notebook [LESSON]  the lessons as notebooks
  graft [train]      a fine-tuning in which what was solved stands in the place of the package's own
  doctor             what the course needs, whether it is there, and what to do where it is not

more examples:
  minipeft learn check 08.2 --json
  minipeft learn solution 08.2 --give-up

"""

# The settings of `compare.pretrain.Recipe` that are options: least value (None: above 0), and what they are.
RECIPE = (("steps", 1, "optimizer steps (default: the recipe's own, as for all below)"),
          ("batch_size", 1, "texts in a step; decoder: blocks"), ("length", 8, "most tokens of a text, or of a block"),
          ("lr", None, "highest learning rate"), ("width", 1, "the model's width D"), ("layers", 1, "blocks"),
          ("heads", 1, "attention heads"), ("feed_forward", 1, "inner width of the feed-forward (4 D)"),
          ("vocabulary", 1, "most pieces in the vocabulary"))

TEACH_NOTE = """  release DIR        a folder for each student, with sizes and numbers of the student's own and without solutions
  grade DIR          check a student's folder, or a folder of such folders
  export DIR         the lessons as assignments for nbgrader or otter
  report DIR         tries, hints and the commonest wrong answers of a class, from the folders that it handed in

more examples:
  minipeft teach release course --student "Ada Lovelace" --tier core
  minipeft teach grade handed-in/ada --gradescope results.json
  minipeft teach grade handed-in --lessons 1,8 --csv points.csv
  minipeft teach export assignments --to nbgrader --lessons 8
  minipeft teach report handed-in

"""

TEACH_ACTIONS = ("release", "grade", "export", "report")
LEARN_ACTIONS = ("watch", "init", "check", "hint", "solution", "list", "reset", "trace", "update", "notebook", "graft", "doctor")

MODEL = "Hugging Face model folder, or toy:encoder, toy:decoder, toy:seq2seq"

# How messages from inside begin, and the option that each is about.
OPTIONS = {"draft: ": "--draft-layers: ", "max_length: ": "--max-length: ", "stride: ": "--stride: ", "pooling: ": "--pooling: ",
           "methods: ": "--methods: ", "exit_rule: ": "--exit-rule: ", "looseness: ": "--looseness: ",
           "data: ": "--data: ", "sweep: ": "--sweep: ", "tune: ": "--tune: ", "dask: ": "--dask: ",
           "model: ": "--model: ", "template: ": "--template: ", "verbalizer: ": "--verbalizer: ",
           "ranking: ": "--ranking: ", "per_class: ": "--per-class: ", "demonstrations: ": "--demonstrations: ",
           "unlabelled: ": "--unlabelled: ", "shots: ": "--shots: ", "by: ": "--by: ",
           "corpus: ": "--corpus: ", "heads: ": "--heads: ", "vocab_size: ": "--vocabulary: ", "length: ": "--length: ",
           "metric: ": "--metric: ", "task: ": "--task: ",
           **{f"task {task}: ": f"--task {task}: " for task in TASKS}}

# What is only needed for some commands, by the extra that brings it.
EXTRAS = {"learn": ("pytest", "pytest_timeout", "jupytext", "watchfiles", "nbformat", "nbclient", "IPython", "ipykernel"),
          "seq2seq": ("sacrebleu", "rouge_score"), "dask": ("distributed",)}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there is none to show, and never breaks the line of an example."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.required
        return action.help if none else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are one line."""

    def error(self, message):
        self.exit(2, f"minipeft: {message.removeprefix('argument ')} (see {self.prog} --help)\n")


# ---- arguments -------------------------------------------------------------------------------------------------


def _command(commands, name, summary, note=""):
    return commands.add_parser(name, help=summary, description=summary, epilog=f"{note}example:\n  {EXAMPLES[name]}",
                               formatter_class=_HelpFormatter, allow_abbrev=False)


def _training_arguments(parser, methods=RUNS, without=()):
    """The settings that ``finetune`` and ``compare`` share; the names are the fields of `compare.run.Run`."""
    parser.add_argument("--task", choices=TASKS, default="classify",
                        help="classify texts, model language (raw text, perplexity), or write one text from another (T5)")
    parser.add_argument("--lr", type=ABOVE_0, help="highest learning rate (default: the method's own)")
    parser.add_argument("--epochs", type=whole(1), help="passes over the training data (default: 3"
                        f"{'' if methods is RUNS else ', with --shots 30'})")
    parser.add_argument("--batch-size", type=whole(1), default=16, help="examples in a batch")
    parser.add_argument("--accumulate", type=whole(1), default=1, help="batches in an optimizer step")
    parser.add_argument("--optimizer", choices=("sgd", "adam", "adamw"), default="adamw", help="optimizer")
    parser.add_argument("--schedule", choices=("linear", "cosine", "constant", "slanted"), default="linear",
                        help="learning-rate schedule")
    parser.add_argument("--warmup", type=SHARE, default=0.06, help="share of the steps in which the learning rate rises")
    parser.add_argument("--weight-decay", type=FROM_0, default=0.01, help="weight decay of matrices")
    parser.add_argument("--clip", type=FROM_0, default=1.0, help="largest gradient norm, 0 for none")
    parser.add_argument("--l2-sp", type=FROM_0, default=0.0,
                        help="strength of the penalty on the distance from the start (and of the head from zero)")
    parser.add_argument("--mixout", type=BELOW_1, default=0.0,
                        help="share of the entries that are what they were at the start, drawn at each training step")
    parser.add_argument("--label-smoothing", type=BELOW_1, default=0.0,
                        help="share of a target that is spread over all classes (seq2seq: all tokens)")
    parser.add_argument("--unfreeze", action="store_true", help="train the head alone at first, and one block more in each epoch")
    parser.add_argument("--layer-decay", type=FROM_1, default=1.0,
                        help="by what the learning rate is divided from each block to the one below it")
    parser.add_argument("--base-bits", type=four_bits, metavar="4", help="store the maps of the frozen blocks in 4 bits (NF4)")
    parser.add_argument("--max-length", type=whole(2), default=128, help="tokens of a text (longer ones are cut), or of a block")
    _writing_arguments(parser)
    parser.add_argument("--stride", type=whole(1),
                        help="lm: tokens between the starts of two evaluation blocks (default: max-length)")
    parser.add_argument("--pooling", choices=("mean", "cls", "pooler", "last"),
                        help="how a text's states become one (default: the folder's own way)")
    parser.add_argument("--metric", choices=METRICS,
                        help="the score; classify: accuracy (default), f1 or matthews; seq2seq: bleu (default), rouge_l or exact")
    parser.add_argument("--train-limit", type=whole(1), help="use only so many training examples (the same for every seed)")
    parser.add_argument("--max-steps", type=whole(1), help="stop after so many steps")
    parser.add_argument("--json", metavar="FILE", help="also write the result to FILE")
    add_method_settings(parser, methods, without)


def _writing_arguments(parser):
    """The settings of written texts, which ``predict`` has as well."""
    parser.add_argument("--max-target-length", type=whole(2), default=64,
                        help="seq2seq: tokens of a target (longer ones are cut), and most tokens to write")
    parser.add_argument("--bleu-tokenizer", choices=BLEU_TOKENIZERS, default="13a",
                        help="seq2seq: what BLEU takes for words, in sacrebleu's names; zh for Chinese")


def _prompting_arguments(parser):
    """What ``prompt`` and the strategies of ``compare`` ask with."""
    parser.add_argument("--template", metavar="TEXT", action="append",
                        help='what the model reads, as in "{text} It was {mask}."; several times: several prompts, for PET')
    parser.add_argument("--verbalizer", metavar="WORDS", action="append",
                        help="words for the classes, as in great=positive,terrible=negative; "
                             "several times: one for each template")
    parser.add_argument("--shots", type=whole(0), metavar="K",
                        help="learn from K examples of each class, drawn by the seed; the first five draws are those of LM-BFF")
    parser.add_argument("--unlabelled", metavar="PATH", help="raw text for PET and iPET: a file or folder as --data's")


def _tokens(text):
    """The type of a number of tokens, which may be written as 5e6."""
    return round(FROM_1(text))


def _plan_parser(commands):
    """The options of ``plan``."""
    from .compare.plan_models import PUBLISHED

    plan = _command(commands, "plan", "What each method costs on a model, on paper: parameters, memory, storage and time.",
                    PLAN_NOTE.format(names=textwrap.fill(f"Names: {', '.join(PUBLISHED)}.", 118, subsequent_indent="  ")))
    plan.add_argument("--model", default="bert-base", metavar="MODEL", help="a published name, a folder, or a config.json")
    what = plan.add_mutually_exclusive_group()
    what.add_argument("--method", choices=RUNS, metavar="METHOD", help=f"one method (default: all of {', '.join(RUNS)})")
    what.add_argument("--four", action="store_true", help="the table of four methods: adapter, LoRA, prefix, soft prompt")
    what.add_argument("--papers", action="store_true", help="the counts that papers print, computed; --model has no part in it")
    plan.add_argument("--task", choices=TASKS, help="what the model is for (default: what its family is for)")
    plan.add_argument("--classes", type=whole(2), default=2, help="classify: number of classes")
    plan.add_argument("--pooling", choices=("mean", "cls", "pooler", "last"),
                      help="classify: how states become one (default: the folder's own way; published BERTs: pooler)")
    plan.add_argument("--batch-size", type=whole(1), default=16, help="examples in a step")
    plan.add_argument("--length", type=whole(1), help="tokens of an example (default: 128, or as many as its positions leave)")
    plan.add_argument("--target-length", type=whole(1), default=64, help="tokens of a target, for an encoder-decoder")
    plan.add_argument("--dtype", choices=("float64", "float32", "float16", "bfloat16"), default="float32",
                      help="type of weights, gradients and activations; minipeft itself trains in float32")
    plan.add_argument("--base-bits", type=four_bits, metavar="4", help="store the maps of the frozen blocks in 4 bits (NF4)")
    plan.add_argument("--flops", type=ABOVE_0, default=200e9,
                      help="operations a second; the default is what a laptop's two cores reach in products of matrices")
    plan.add_argument("--tokens", type=_tokens, default=1_000_000, help="tokens of the whole training")
    plan.add_argument("--json", metavar="FILE", help="also write the plan to FILE")
    add_method_settings(plan)


def _finetune_parser(commands):
    """The options of ``finetune``."""
    finetune = _command(commands, "finetune", "Fine-tune a model on your data with one method.")
    finetune.add_argument("--model", required=True, metavar="DIR", help=MODEL)
    finetune.add_argument("--data", required=True, metavar="PATH",
                          help="folder with train/dev/test files, or one file (TSV, CSV, JSONL; lm: text), with the columns "
                               "text[,text2],label; seq2seq: text,text2; or a task of the toy world, "
                               "toy:NAME[:DIFFICULTY], or python-docs")
    finetune.add_argument("--method", choices=RUNS, default="lora", metavar="METHOD",
                          help=f"fine-tuning method: {', '.join(RUNS)}")
    finetune.add_argument("--seed", type=whole(0), default=0, help="seed of everything random")
    finetune.add_argument("--out", required=True, metavar="DIR", help="folder for the adapter (or model) and the result")
    finetune.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    _training_arguments(finetune)


def _predict_parser(commands):
    """The options of ``predict``."""
    predict = _command(commands, "predict", "Predict the classes of texts, measure the perplexity of a text, or write texts "
                       "with T5.")
    predict.add_argument("--model", required=True, metavar="DIR", help=MODEL)
    predict.add_argument("--adapter", metavar="DIR", help="adapter folder, written by minipeft or HF PEFT")
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="PATH",
                        help="file or folder of texts; a column label (T5: text2), where there is one, is scored")
    source.add_argument("--text", metavar="TEXT", help="one text")
    predict.add_argument("--split", choices=("train", "dev", "test"), help="part of a folder (default: test, else dev)")
    predict.add_argument("--text2", metavar="TEXT", help="the second text of a pair, with --text (T5: a reference)")
    predict.add_argument("--max-length", type=whole(2), default=128, help="tokens of a text; longer ones are cut")
    _writing_arguments(predict)
    predict.add_argument("--exit-rule", choices=EXIT_RULES,
                         help="let each text leave early by this rule; for a model with exits (finetune --method early_exit)")
    predict.add_argument("--looseness", type=SHARE,
                         help="how readily it leaves: 0 never early, 1 at the first exit (default: 0.3)")
    predict.add_argument("--batch-size", type=whole(1), default=32, help="examples in a batch")
    predict.add_argument("--json", metavar="FILE", help="also write the predictions to FILE")


def _prompt_parser(commands):
    """The options of ``prompt``."""
    prompt = _command(commands, "prompt", "Classify by asking in words: with no labels, a few, or all.", PROMPT_NOTE)
    prompt.add_argument("--model", required=True, metavar="DIR", help=f"{MODEL}; with its language-model head")
    prompt.add_argument("--data", metavar="PATH", help="folder with train/dev/test files, one file, or toy:NAME[:DIFFICULTY]")
    prompt.add_argument("--text", metavar="TEXT", help="one text")
    prompt.add_argument("--text2", metavar="TEXT", help="the second text of a pair, with --text")
    _prompting_arguments(prompt)
    prompt.add_argument("--method", choices=METHODS, metavar="METHOD", help=f"fine-tune by one of {', '.join(METHODS)}")
    prompt.add_argument("--adapter", metavar="DIR", help="ask with an adapter that was fine-tuned by prompting")
    prompt.add_argument("--search-words", type=whole(1), metavar="N",
                        help="look for the N best verbalizers on train (with --method on dev, after fine-tuning), and stop")
    prompt.add_argument("--splits", type=whole(1), metavar="N", help="draws of --shots examples (default: 5)")
    prompt.add_argument("--seed", type=whole(0), default=0, help="the first draw")
    prompt.add_argument("--jobs", type=whole(1), metavar="N",
                        help="runs at a time (default: as many as there are cores, at most 4)")
    prompt.add_argument("--out", metavar="DIR", help="keep what is trained in this folder; finished runs in it are not repeated")
    _training_arguments(prompt, (*METHODS, *STRATEGIES), without=("by",))  # which is --method here


def _compare_parser(commands):
    """The options of ``compare``."""
    compare = _command(commands, "compare", "Fine-tune the same model on the same data with each method, and print one table.",
                       COMPARE_NOTE)
    compare.add_argument("--model", metavar="DIR",
                         help=f"{MODEL} (default: that of the package)")
    compare.add_argument("--data", metavar="PATH", action="append",
                         help="folder with train/dev/test files, one file, toy:NAME[:DIFFICULTY], or python-docs; several times: "
                              "several tasks (default: toy:rating)")
    compare.add_argument("--methods",
                         help=f"methods, separated by commas (default: those of {','.join(MAIN)} that go with the model), "
                              f"of: {', '.join(COMPARED)}; the last {len(STRATEGIES)} classify by prompting")
    compare.add_argument("--sweep", type=sweep, action="append", metavar="METHOD.SETTING=VALUES",
                         help="compare a method with each of these values, separated by commas; several times: each combination")
    compare.add_argument("--tune", action="store_true",
                         help="try three learning rates for each method first, and take the best on dev")
    compare.add_argument("--seeds", type=whole(1), default=3, help="how many seeds, from 0")
    compare.add_argument("--jobs", type=whole(1), metavar="N",
                         help="runs at a time, each in a process of its own (default: as many as there are cores, at most 4)")
    compare.add_argument("--threads", type=whole(1), default=1, metavar="N", help="threads of each run")
    compare.add_argument("--dask", metavar="ADDRESS", help="let the workers of the Dask scheduler at this address do the runs")
    compare.add_argument("--out", metavar="DIR", default="runs/compare",
                         help="folder for the runs; finished runs in it are not repeated")
    _prompting_arguments(compare)
    _training_arguments(compare, COMPARED)


def _pretrain_parser(commands):
    """The options of ``pretrain``."""
    pretrain = _command(commands, "pretrain", "Make a small model from raw text: masked words, the next word, or spans.",
                        PRETRAIN_NOTE)
    pretrain.add_argument("--arch", choices=("encoder", "decoder", "seq2seq"), help="BERT, GPT-2 or T5 (--verify: default all)")
    pretrain.add_argument("--corpus", metavar="CORPUS", default="toy",
                          help="toy (the toy world), python-docs (CPython's manual), or a UTF-8 text file: its paragraphs, or "
                               "its lines where no empty lines part them")
    pretrain.add_argument("--out", metavar="DIR", help="new folder for the model")
    pretrain.add_argument("--seed", type=whole(0), default=0, help="seed of everything random")
    pretrain.add_argument("--resume", action="store_true", help="go on with the unfinished pre-training in --out")
    pretrain.add_argument("--verify", action="store_true", help="make the package's own models again, and compare")
    for name, least, words in RECIPE:
        pretrain.add_argument(f"--{name.replace('_', '-')}", type=ABOVE_0 if least is None else whole(least), help=words)
    pretrain.add_argument("--json", metavar="FILE", help="also write what was made to FILE")


def _generate_parser(commands):
    """The options of ``generate``."""
    generate = _command(commands, "generate", "Continue a text with a decoder, or write one for it with T5.")
    generate.add_argument("--model", required=True, metavar="DIR", help=MODEL)
    generate.add_argument("--adapter", metavar="DIR", help="adapter folder, written by minipeft or HF PEFT")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    generate.add_argument("--max-new-tokens", type=whole(1), default=100, help="how many tokens to write at most")
    generate.add_argument("--temperature", type=FROM_0, default=0.0,
                          help="0 takes the most probable token; above 0 samples, the higher the wilder")
    generate.add_argument("--top-k", type=whole(0), default=0, help="sample among the k most probable tokens (0: all)")
    generate.add_argument("--top-p", type=UP_TO_1, default=1.0,
                          help="sample among the most probable tokens that together reach p")
    generate.add_argument("--seed", type=whole(0), default=0, help="seed of the sampling")
    generate.add_argument("--draft-layers", type=whole(1), metavar="E",
                          help="let the first E blocks draft and all blocks verify: the same text, in fewer passes of the others")
    generate.add_argument("--draft-tokens", type=whole(1), default=4, metavar="K", help="how many tokens to draft at a time")
    generate.add_argument("--json", metavar="FILE", help="also write the text and its token ids to FILE")


def _doctor_parser(commands):
    """The options of ``doctor``."""
    doctor = _command(commands, "doctor", "Check the installation and the machine, and say what to do about what is wrong.",
                      "The exit code is 1 where something is wrong.\n\n")
    doctor.add_argument("--json", metavar="FILE", help="also write the findings to FILE")


def _learn_parser(commands):
    """The options of ``learn``."""
    learn = _command(commands, "learn", "Work through the course: lessons, exercises, checks and hints.", LEARN_NOTE)
    learn.add_argument("action", nargs="?", default="watch", choices=LEARN_ACTIONS, metavar="ACTION",
                       help=', '.join(LEARN_ACTIONS))
    learn.add_argument("item", nargs="?", metavar="ITEM",
                       help="an exercise, as 08.2 (default: the one in hand); init: a new folder; notebook: a lesson, as 8")
    learn.add_argument("--dir", metavar="DIR", help="folder of the course (default: this one, or the one that it lies in)")
    learn.add_argument("--json", dest="as_json", action="store_true", help="check: print what came of it as JSON")
    learn.add_argument("--all", action="store_true", help="check: every exercise")
    learn.add_argument("--give-up", action="store_true", help="solution: show it although the exercise has not passed")
    learn.add_argument("--out", metavar="DIR", help="graft: keep the run in this folder")


def _teach_parser(commands):
    """The options of ``teach``."""
    teach = _command(commands, "teach",
                     "Hand the course out, grade it, take it elsewhere, and see how a class gets on.", TEACH_NOTE)
    teach.add_argument("action", choices=TEACH_ACTIONS, metavar="ACTION", help=", ".join(TEACH_ACTIONS))
    teach.add_argument("folder", metavar="DIR", help="release, export: where to; grade, report: what was handed in")
    teach.add_argument("--student", metavar="NAME", help="release: one student")
    teach.add_argument("--students", metavar="FILE", help="release: a file with a name in each line")
    teach.add_argument("--tier", choices=("core", "all"), default="all",
                       help="release, grade: with the exercises for who has the time, or without")
    teach.add_argument("--lessons", metavar="NUMBERS", help="grade, export: only these, separated by commas")
    teach.add_argument("--gradescope", metavar="FILE", help="grade: write Gradescope's results to FILE")
    teach.add_argument("--csv", metavar="FILE", help="grade: write a row for each student to FILE")
    teach.add_argument("--to", choices=("nbgrader", "otter"), default="nbgrader", help="export: for which tool")
    teach.add_argument("--json", dest="as_json", action="store_true", help="report: print it as JSON")


def make_parser():
    """The parser of all commands."""
    from . import __version__

    parser = _Parser(
        prog="minipeft", allow_abbrev=False,
        description="Fine-tune pre-trained Transformers with few parameters, on a laptop, in NumPy.",
        epilog="minipeft COMMAND --help explains a command and gives an example.")
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    for add in (_finetune_parser, _predict_parser, _prompt_parser, _compare_parser, _plan_parser, _pretrain_parser,
                _generate_parser, _doctor_parser, _learn_parser, _teach_parser):
        add(commands)
    return parser


# ---- commands --------------------------------------------------------------------------------------------------


def _run_fields(args):
    from dataclasses import fields

    from .compare.run import Run

    return {f.name: getattr(args, f.name) for f in fields(Run) if hasattr(args, f.name)} | {"options": given_settings(args)}


def _write_json(args, value):
    if args.json:
        from .data.files import write_json

        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, value)


def _check_json(args):
    """See before a long run that its result can be written."""
    if args.json:
        from .compare.run import check_writable

        if Path(args.json).is_dir():
            raise ValueError(f"--json {args.json}: is a folder; expected a file to write to")
        check_writable(args.json)


def finetune(args):
    """``minipeft finetune``."""
    from .compare.run import CHECKPOINT, RESULT, Run, execute
    from .compare.table import other_metrics, size_text

    run, out = Run(**_run_fields(args)), Path(args.out)
    finished = args.resume and (out / RESULT).is_file()
    _check_json(args)
    try:
        result = execute(run, out, args.resume)
    except KeyboardInterrupt as stop:
        if (out / CHECKPOINT).is_file():
            print(f"minipeft: {str(stop) or 'stopped'}; the checkpoint is kept. To go on, repeat the command with --resume",
                  file=sys.stderr)
            return 130
        raise
    _write_json(args, result)
    if finished:
        print(f"note: {out} holds this run, finished before; its result again:", file=sys.stderr)
    share = 100 * result["trainable"] / result["total"]
    print(f"method      {result['method']}")
    print(f"data        {result['data']}")
    print(f"trainable   {result['trainable']:,} of {result['total']:,} parameters ({share:.3g} %), "
          f"{result['trainable_without_head']:,} without the head")
    for name in (result["metric"], *other_metrics(result)) if result["scores"] else ():
        print(f"{name:<11} {result['scores'][name]:.4f} on {result['split']}")
    if not result["scores"]:
        print("score       no dev or test split")
    if result["mean_layer"] is not None:
        print(f"exits       examples left at layer {result['mean_layer']:.2f} on average")
    print(f"step        {result['step_ms']:.1f} ms, peak memory {result['peak_mb']:.0f} MB, {result['seconds']:.1f} s in all")
    print(f"saved       {args.out} ({size_text(result['size_mb'])})")
    if result["format_note"]:
        print(f"note        {result['format_note']}")
    return 0


def predict(args):
    """``minipeft predict``."""
    from .compare.predict import predict as run

    _check_json(args)
    rows, summary = run(args)
    _write_json(args, summary["json"])
    for row in rows:
        print("\t".join(row))
    for line in summary["lines"]:
        print(line, file=sys.stderr)
    return 0


def prompt(args):
    """``minipeft prompt``."""
    from .compare.prompt_command import run

    _check_json(args)
    fields = {k: v for k, v in _run_fields(args).items() if k not in ("model", "data", "method", "seed")}
    try:
        rows, lines, found = run(args, fields)
    except KeyboardInterrupt:
        kept = (f"what is done is kept in {args.out}. To go on, repeat the command" if args.out
                else "nothing is kept without --out")
        print(f"minipeft: stopped; {kept}", file=sys.stderr)
        return 130
    _write_json(args, found)
    for line in lines:
        print(line, file=sys.stderr)
    for row in rows:
        print("\t".join(row))
    return 0


def compare(args):
    """``minipeft compare``."""
    from .compare.comparison import compare as compare_all

    _check_json(args)
    methods = None if args.methods is None else [m.strip() for m in args.methods.split(",")]
    try:
        table = compare_all(args.model, args.data, methods, args.seeds, args.out,
                            {k: v for k, v in _run_fields(args).items() if k not in ("model", "data", "method", "seed")},
                            sweeps=dict(args.sweep or ()), tune=args.tune, jobs=args.jobs, threads=args.threads, dask=args.dask)
    except KeyboardInterrupt:
        print(f"minipeft: stopped; what is done is kept in {args.out}. To go on, repeat the command", file=sys.stderr)
        return 130
    _write_json(args, table.rows)
    table.show()
    sys.stdout.flush()
    for run in table.failed:
        print(f"minipeft: {run['label']} seed {run['seed']}: {run['reason']}", file=sys.stderr)
    if table.failed:
        print(f"minipeft: {len(table.failed)} of the runs failed and are not in the table; the others are kept in {args.out}. "
              "Repeat the command to try the failed ones again", file=sys.stderr)
    return 2 if table.failed else 0


def plan(args):
    """``minipeft plan``."""
    from .compare.plan_command import run

    _check_json(args)
    _write_json(args, run(args, given_settings(args)))
    return 0


def pretrain(args):
    """``minipeft pretrain``."""
    from .compare.pretrain import CHECKPOINT, RECIPES, run, run_verification

    given = {name: getattr(args, name) for name, _, _ in RECIPE if getattr(args, name) is not None}
    _check_json(args)
    if args.verify:
        if given or args.out or args.resume or args.corpus != "toy" or args.seed:
            raise ValueError("--verify: makes the package's own models as they were made; give --arch, or nothing")
        found = run_verification([args.arch] if args.arch else list(RECIPES))
        _write_json(args, found)
        return 1 if any(each["holds"] is False for each in found) else 0
    for name in ("arch", "out"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name}: is needed, unless --verify is given (see minipeft pretrain --help)")
    try:
        made = run(args.arch, args.out, {"corpus": args.corpus, "seed": args.seed, **given}, args.resume)
    except KeyboardInterrupt as stop:
        if (Path(args.out) / CHECKPOINT).is_file():
            print(f"minipeft: {str(stop) or 'stopped'}; the checkpoint is kept. To go on, repeat the command with --resume",
                  file=sys.stderr)
            return 130
        raise
    _write_json(args, made)
    return 0


def generate(args):
    """``minipeft generate``."""
    import numpy as np

    from .compare.predict import load, taken
    from .compare.run import load_config
    from .data import Tokenizer
    from .methods import draft_and_verify
    from .models import generate as run

    if args.temperature == 0 and (args.top_k or args.top_p != 1.0):
        raise ValueError("--top-k and --top-p choose among samples; set a --temperature above 0")
    if args.draft_layers and args.temperature:
        raise ValueError("--draft-layers: what is drafted is verified against the most probable tokens; leave out --temperature")
    _check_json(args)
    tokenizer = Tokenizer.from_folder(args.model)
    model = load(args.model, args.adapter, task="seq2seq" if load_config(args.model).encoder_decoder else "lm")
    ids = np.array([tokenizer.encode(args.prompt)], np.int64)  # (1, T)
    if ids.size == 0:
        raise ValueError("--prompt: there is no token in this text; give at least one word")
    room = model.config.max_position_embeddings - taken(model) - ids.size if model.config.learned_positions else math.inf
    if args.max_new_tokens > room:
        raise ValueError(f"--max-new-tokens: this model has {model.config.max_position_embeddings} positions "
                         f"and the prompt takes {ids.size}; "
                         + (f"expected at most {room}, got {args.max_new_tokens}" if room > 0 else "shorten the prompt"))
    rng, facts = np.random.default_rng(args.seed) if args.temperature else None, {}
    if args.draft_layers:
        out, drafted, accepted = draft_and_verify(model, ids, args.draft_layers, args.draft_tokens, args.max_new_tokens)
        facts = {"drafted": drafted, "accepted": accepted}
        print(f"note: {accepted} of {drafted} drafted tokens were accepted", file=sys.stderr)
    else:
        out = run(model, ids, args.max_new_tokens, rng=rng, temperature=args.temperature or 1.0, top_k=args.top_k,
                  top_p=args.top_p)
    text = tokenizer.decode(out[0].tolist())
    _write_json(args, {"prompt": args.prompt, "text": text, "ids": out[0].tolist(), **facts})
    print(text)
    return 0


def doctor(args):
    """``minipeft doctor``."""
    from .doctor import examine, show

    _check_json(args)
    findings = examine()
    _write_json(args, [f._asdict() for f in findings])
    show(findings)
    return 1 if any(f.advice for f in findings) else 0


def learn(args):
    """``minipeft learn``; its doctor reports as ``minipeft doctor`` does."""
    if args.action == "doctor":
        from .doctor import Finding, show
        from .learn.doctor import examine

        findings = [Finding(*each) for each in examine(args.dir or ".")]
        show(findings)
        return int(any(finding.advice for finding in findings))
    from .learn.commands import run

    return run(args)


def teach(args):
    """``minipeft teach``."""
    from .learn.teach import run

    return run(args)


COMMANDS = {"finetune": finetune, "predict": predict, "prompt": prompt, "compare": compare, "plan": plan, "pretrain": pretrain,
            "generate": generate, "doctor": doctor, "learn": learn, "teach": teach}


def check_paths(args):
    """Refuse an empty path, which would stand for the folder that one is in."""
    for name in ("model", "data", "adapter", "out", "unlabelled", "corpus", "json"):
        given = getattr(args, name, None)
        if given == "" or isinstance(given, list) and "" in given:
            raise ValueError(f"--{name}: expected a path, got nothing")


def main(arguments=None):
    """Run a command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without some letter must not lose a result
    try:
        try:
            args = make_parser().parse_args(arguments)
            check_paths(args)
            return COMMANDS[args.command](args)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away, as ``head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("minipeft: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        if os.environ.get("MINIPEFT_DEBUG") == "1":
            raise
        print(f"minipeft: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error):
    """What is wrong, on one line, in the spelling of the command line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}; try a smaller --batch-size or --max-length"
    if isinstance(error, ModuleNotFoundError):
        extra = next((extra for extra, names in EXTRAS.items() if error.name in names), None)
        return f"{error.name} is not installed; " + (f'in the project\'s folder run: pip install ".[{extra}]"' if extra else
                                                     f"run: pip install {error.name}")
    text = " ".join(str(error).split())
    for inside, option in OPTIONS.items():
        if text.startswith(inside) and not os.path.exists(inside.removesuffix(": ")):  # else it is a path that begins the line
            return option + text.removeprefix(inside)
    text = re.sub(r"\b[A-Z]\w+\((\w+)=True\)", lambda found: "--" + found[1].replace("_", "-"), text)
    of_method = re.match(r"(\w+)( targets|: the rank|: alpha)\b:?", text)
    if of_method and of_method[1] in METHODS:
        word = of_method[2].split()[-1]
        return f"--{word}: " + text[len(of_method[1]):].removeprefix(" targets").removeprefix(":").strip()
    return text
