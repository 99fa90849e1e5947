"""``minipeft plan`` as a person uses it: its tables, its one-line faults, its speed, and the bounds of the four-method table."""

import json
import re
import shlex
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipeft import cli
from minipeft.compare import plan, plan_four
from minipeft.compare.exits import OFFERED
from minipeft.compare.plan_command import bytes_text, share_text, time_text
from minipeft.compare.plan_models import PUBLISHED, load_shape
from minipeft.data import files
from minipeft.methods import METHODS
from minipeft.nn import Parameter

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(capsys, monkeypatch):
    """``command("plan --model ...")``: (exit code, standard output, standard error), in 80 columns unless told."""

    def call(line, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_one_method_on_a_published_model(command, tmp_path):
    code, out, err = command(f"plan --model roberta-base --method lora --rank 8 --targets q,v --json {tmp_path}/a/plan.json")
    assert (code, err) == (0, "")
    assert re.search(r"^lora +294,912 +0\.24 +887,042 +3\.55 MB +3\.55 GB$", out, re.MULTILINE)
    assert "roberta-base (roberta), to classify into 2 classes: 124,647,170 parameters" in out.replace("\n", " ")
    assert "minipeft plans this roberta and cannot run it" in out
    written = json.loads((tmp_path / "a" / "plan.json").read_text())
    (row,) = written["methods"]
    assert ((row["method"], row["without_head"], row["settings"]["targets"], written["parameters"])
            == ("lora", 294912, "q,v", 124647170))
    assert row["share_without_head"] == 294912 / row["total"] and written["not_planned"] == {}


def test_all_methods_in_one_table_and_why_some_are_not(command):
    code, out, err = command("plan --model t5-v1_1-small")
    assert (code, err) == (0, "")
    for name in OFFERED:
        assert len(re.findall(rf"^{name} +[0-9]", out, re.MULTILINE)) == (0 if name in ("bitfit", "early_exit") else 2), name
    assert ("not planned: early_exit: expected an encoder or a decoder with 2 blocks or more that classifies"
            in " ".join(out.split()))
    assert "not planned: bitfit: this t5 model has no bias to train; --add-zero-biases adds" in out
    assert "bitfit" in command("plan --model t5-v1_1-small --add-zero-biases")[1].split("memory and time")[1]


def test_early_exit_alone(command):
    code, out, err = command("plan --model bert-base --method early_exit --classes 3")
    exits = 11 * (768 * 769 + 769 * 3)
    assert (code, err) == (0, "") and re.search(rf"^early_exit +{109_482_240 + exits:,} +", out, re.MULTILINE)


@pytest.mark.parametrize("model, length, left_out", [("encoder", 108, set()), ("decoder", 108, {"head", "early_exit"}),
                                                     ("seq2seq", 128, {"head", "early_exit", "bitfit"})])
@pytest.mark.parametrize("four", [False, True])
def test_the_packages_own_models_are_planned_with_the_defaults(model, length, left_out, four, command, tmp_path):
    """They have 128 positions, of which a prompt takes 20."""
    code, out, err = command(f"plan --model toy:{model} --json {tmp_path}/plan.json{' --four' * four}")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert (code, err, written["setting"]["length"]) == (0, "", length)
    said = "note: 108 tokens, and not 128: as many as its 128 positions leave beside a method's virtual ones"
    assert (said in " ".join(out.split())) == (length < 128) and f"a step: 16 x {length} " in out
    if four:
        assert [row["method"] for row in written["four"]] == ["houlsby", "lora", "prefix", "prompt"]
    else:
        assert ({row["method"] for row in written["methods"]} == set(OFFERED) - left_out
                and set(written["not_planned"]) == left_out)


def test_only_methods_in_question_shorten_the_default_length(command):
    assert "16 x 128 tokens" in command("plan --model toy:encoder --method lora")[1]
    assert "16 x 88 tokens" in command("plan --model toy:encoder --method prompt --num-virtual-tokens 40")[1]
    assert "16 x 108 tokens" in command("plan --model toy:encoder --four --num-virtual-tokens 20")[1]
    assert "16 x 128 tokens" in command("plan --model toy:encoder --num-virtual-tokens 128")[1]  # which no word would be left for
    assert command("plan --model toy:encoder --four --length 120") == (
        2, "", "minipeft: --length: 120 tokens and 20 virtual ones come before them, and toy:encoder has 128 positions; "
               "take at most 108\n")


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("line", [*(f"plan --model {name}" for name in ("bert-base", "gpt3-175b", "t5-v1_1-xxl")),
                                  "plan --papers", "plan --model gpt3-175b --four", "plan --model bert-base --four",
                                  "plan --method lora"])
def test_tables_fit_the_terminal_and_nothing_is_cut_off(line, columns, command):
    code, out, _ = command(line, columns)
    assert code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in out
    widest = 92 if "gpt3" in line or "xxl" in line else columns  # the largest numbers may need a little more than 80
    assert max(map(len, out.splitlines())) <= max(columns, widest)


def test_the_counts_of_papers(command, tmp_path):
    code, out, _ = command(f"plan --papers --json {tmp_path}/papers.json", 120)
    assert code == 0 and "two digits stand in the wrong order" in out
    rows = json.loads((tmp_path / "papers.json").read_text())
    assert {row["unit"] for row in rows} == {"parameters", "%", "MiB"} and len(rows) > 60


def test_settings_without_a_part_are_named(command):
    assert command("plan --method lora --bottleneck 4 --words x")[2] == "note: --bottleneck, --words have no part in this plan\n"
    assert command("plan --four --layers 3")[2] == "note: --layers has no part in this plan\n"
    assert command("plan --layers 3 --rank 2")[2] == ""
    assert command("plan --papers --rank 3 --words x")[2] == "note: --rank, --words have no part in this plan\n"


def test_a_folder_and_its_file(command, world):
    for model in (world / "bert", world / "bert" / "config.json", world / "t5", world / "gpt2", world / "llama"):
        code, out, err = command(f"plan --model {model} --length 20 --rank 2 --num-virtual-tokens 3")
        assert (code, err) == (0, "") and "cannot run it" not in out


def test_the_readme_shows_what_the_command_prints(command):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split("## What it costs on paper", 1)[1].split("\n## ", 1)[0]
    line, shown = re.search(r"```\nminipeft (plan .*)\n```.*?```\n(.*?)```", section, re.DOTALL).groups()
    code, out, _ = command(line, 100)
    strip = lambda text: [row.rstrip() for row in text.strip().splitlines()]
    assert code == 0 and strip(shown) == strip(out)


@pytest.mark.parametrize("value, text", [(0, "0"), (999, "999 B"), (1536, "1.54 kB"), (99_949, "99.9 kB"), (99_951, "100 kB"),
                                         (999_600, "1.00 MB"), (6.984e11, "698 GB"), (2e18, "2,000 PB")])
def test_bytes_as_text(value, text):
    assert bytes_text(value) == text


@pytest.mark.parametrize("value, text", [(2e-7, "0.20 µs"), (0.0123, "12.3 ms"), (59, "59.0 s"), (60, "1.00 min"),
                                         (7200, "2.00 h"), (1e6, "11.6 days"), (1e9, "31.7 years")])
def test_seconds_as_text(value, text):
    assert time_text(value) == text


@pytest.mark.parametrize("value, text", [(0, "0"), (1, "100"), (0.1288, "12.9"), (0.00237, "0.24"), (7e-6, "0.0007"),
                                         (7e-8, "7e-06")])
def test_shares_as_text(value, text):
    assert share_text(value) == text


# ---- faults ---------------------------------------------------------------------------------------------------------

FAULTS = [
    ("--model roberta-bse",
     "--model: no published model is called 'roberta-bse' and there is no such folder or file; did you mean 'roberta-base'? "
     f"Published: {', '.join(PUBLISHED)}"),
    ("--model 123",
     f"--model: no published model is called '123' and there is no such folder or file. Published: {', '.join(PUBLISHED)}"),
    ("--method lora --rank 900", "--rank: the rank at blocks.0.attn.q must be a whole number from 1 to 768, got 900"),
    ("--rank 900 --four", "--rank: the rank at blocks.0.attn.q must be a whole number from 1 to 768, got 900"),
    ("--method lora --targets attn.qq",
     "--targets: no module matches 'attn.qq'; did you mean 'blocks.*.attn.q'? Seams: blocks.*.attn.q, blocks.*.attn.k, "
     "blocks.*.attn.v, blocks.*.attn.out, blocks.*.mlp.up, blocks.*.mlp.down"),
    ("--method houlsby --targets q", "--targets: no module matches 'q'. Seams: blocks.*.attn.join, blocks.*.mlp.join"),
    ("--method compacter --bottleneck 6",
     "compacter: num_factors must be a whole number that divides the width 768 and the bottleneck 6, got 4"),
    ("--method top_k --layers 13",
     "top_k: layers must be a whole number from 1 to 12, the number of this model's blocks; got 13"),
    ("--method prompt --num-virtual-tokens 512",
     "prompt: 512 virtual tokens leave none of this model's 512 positions to the words; take at most 511, or "
     "shift_positions=False"),
    ("--method prompt --num-virtual-tokens 500 --length 99",
     "--length: 99 tokens and 500 virtual ones come before them, and bert-base has 512 positions; take at most 12"),
    ("--length 600", "--length: 600 tokens, and bert-base has 512 positions; take at most 512"),
    ("--model roberta-base --length 513 --method lora",
     "--length: 513 tokens, and roberta-base has 512 positions; take at most 512"),
    ("--model bart-large --length 1025 --method lora",
     "--length: 1025 tokens, and bart-large has 1024 positions; take at most 1024"),
    ("--model llama-7b --method bitfit", "bitfit: this llama model has no bias to train; --add-zero-biases adds biases of zeros"),
    ("--model gpt2 --method head", "head: the output map is tied to the word vectors, so that there is none of its own to train"),
    ("--method full --base-bits 4",
     "full: trains weights, which must not be stored in 4 bits; leave --base-bits out, or take lora"),
    ("--model gpt2 --task seq2seq", "--task seq2seq: gpt2 is a gpt2 model; its tasks: lm, classify"),
    ("--model gpt2 --task classify --pooling cls", "--pooling: a gpt2 classifier reads the last token, which is last; got cls"),
    ("--model deberta-xxl --pooling mean", "--pooling: a deberta-v2 classifier reads the first token, which is cls; got mean"),
    ("--flops 0", "--flops: expected a number above 0, got '0' (see minipeft plan --help)"),
    ("--tokens 0.5", "--tokens: expected a number of 1 or more, got '0.5' (see minipeft plan --help)"),
    ("--batch-size 0", "--batch-size: expected a whole number of at least 1, got '0' (see minipeft plan --help)"),
    ("--method lora --four", "--four: not allowed with argument --method (see minipeft plan --help)"),
]


@pytest.mark.parametrize("line, message", FAULTS, ids=[line for line, _ in FAULTS])
def test_faults_are_one_line(line, message, command):
    assert command(f"plan {line}") == (2, "", f"minipeft: {message}\n")


def test_files_that_are_no_configs(command, tmp_path):
    (tmp_path / "text.json").write_text("words")
    files.write_json(tmp_path / "config.json", {"model_type": "mamba"})
    (tmp_path / "empty").mkdir()
    assert "this config is not JSON" in command(f"plan --model {tmp_path}/text.json")[2]
    assert f"{tmp_path}/config.json: no plan for model_type 'mamba'; known: bert, " in command(f"plan --model {tmp_path}")[2]
    assert (f"{tmp_path}/empty: no config.json; expected a Hugging Face model folder, a config.json, or one of bert-base, "
            in command(f"plan --model {tmp_path}/empty")[2])
    assert command(f"plan --json {tmp_path}")[2] == f"minipeft: --json {tmp_path}: is a folder; expected a file to write to\n"


# ---- nothing is made ------------------------------------------------------------------------------------------------


def test_no_parameter_and_no_large_array_is_made(command, monkeypatch):
    def never(*_):
        raise AssertionError("a Parameter was made")

    monkeypatch.setattr(Parameter, "__init__", never)
    for line in ("plan --model gpt3-175b", "plan --model gpt3-175b --four", "plan --model deberta-xxl --method full",
                 "plan --papers"):
        tracemalloc.start()
        try:
            assert command(line)[0] == 0
            assert tracemalloc.get_traced_memory()[1] < 50e6, line
        finally:
            tracemalloc.stop()


def test_it_answers_at_once(command):
    for line in ("plan --model gpt3-175b", "plan --model t5-v1_1-xxl --four", "plan --model roberta-base --method lora"):
        started = time.process_time()
        assert command(line)[0] == 0
        assert time.process_time() - started < 4, line  # half a second on an idle machine


def test_help_needs_no_numpy():
    code = ("import sys\nfrom minipeft.cli import main\ntry: main(['plan', '--help'])\nexcept SystemExit: pass\n"
            "print('numpy' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("False\n") and "deberta-xxl" in done.stdout, done.stderr


# ---- the four methods -----------------------------------------------------------------------------------------------


@given(st.floats(0.001, 0.9), st.integers(1, 400), st.integers(0, 300), st.integers(1000, 10**6), st.none() | st.integers(1, 300))
def test_the_largest_size_below_a_bound(bound, slope, constant, total, limit):
    share = lambda size: (slope * size + constant) / (total + slope * size + constant)
    tried = range(1, limit + 1) if limit else range(1, 2 + int(bound * (total + constant) / (slope * (1 - bound)) + 1))
    largest = max((size for size in tried if share(size) < bound), default=0)
    assert plan_four.largest_below(bound, share, limit) == (None if limit and largest == limit else largest)


@pytest.mark.parametrize("model", ["bert-base", "t5-v1_1-small", "gpt2", "llama-7b", "bart-large"])
def test_the_usual_bounds_hold_up_to_the_size_that_is_told(model):
    shape = load_shape(model)
    for row in plan_four.four(shape, {}, plan.Setting()):
        character, held = row.character, []
        for size in range(1, 1 + (row.limit if row.limit and row.limit < 2000 else 2 * (row.largest or 1) + 2)):
            number = plan.count(METHODS[character.method](**{character.size: size}), shape)
            assert number == row.slope * size + row.constant
            held.append(number / (shape.total + number) < character.bound)
        assert sum(held) == (len(held) if row.largest is None else row.largest)
        assert held == sorted(held, reverse=True)
        assert row.row.without_head == row.slope * row.size + row.constant


def test_the_orders_of_growth():
    """Twice the width, the layers, or r and n: what doubles and what does not, as the table's Theta says."""
    slope = lambda method, **sizes: plan_four.four(_encoder(**sizes), {}, plan.Setting(length=8))[method].slope
    for method, by_layers in ((0, 2), (1, 2), (2, 2), (3, 1)):
        assert slope(method, layers=4) == by_layers * slope(method, layers=2)
        assert slope(method, width=64) == pytest.approx(2 * slope(method, width=32), rel=0.02)


def _encoder(width=32, layers=2):
    from minipeft.compare.plan_models import shape_of

    shape = shape_of({"model_type": "bert", "vocab_size": 99, "hidden_size": width, "num_hidden_layers": layers,
                      "num_attention_heads": 4, "intermediate_size": 4 * width, "max_position_embeddings": 64})
    return shape


def test_the_table_of_four(command, tmp_path):
    code, out, err = command(f"plan --model gpt3-175b --four --json {tmp_path}/four.json")
    assert (code, err) == (0, "")
    for order in ("Θ(d r L)", "Θ(d n L)", "Θ(d n)"):
        assert order in out
    for word in ("latency", "integration", "prefix length", "limited", "capacity", "conditions of use", "suitable models"):
        assert word in out
    four = json.loads((tmp_path / "four.json").read_text())["four"]
    assert [row["title"] for row in four] == ["adapter", "LoRA", "prefix", "soft prompt"]
    assert all(row["share"] < row["bound"] for row in four)  # at this size the usual bounds hold
    small = plan_four.four(load_shape("bert-base"), {}, plan.Setting())
    assert [row.row.share_without_head < row.character.bound for row in small] == [True, False, False, True]
    assert [row["slower"] > 0 for row in four] == [True, False, True, True]
