"""Tokenizers: the ids of the real models, truncation as the library does it but fast, and a deterministic training."""

import json
import re
import sys
import time

import numpy as np
import pytest

from minipeft.data import Tokenizer, collate, make_batches, train_wordpiece

TEXTS = ["The cat sat on the mat.", "A dog chased the cat!", "Cats and dogs sat; a mat was chased."] * 3


@pytest.fixture(scope="module")
def small():
    """A WordPiece tokenizer of a few words."""
    return train_wordpiece(TEXTS, 80)


def byte_level():
    """A library tokenizer of GPT-2's kind: bytes, and no special tokens around a text."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = LibraryTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"],
                                                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return inner


# ---- real models -----------------------------------------------------------------------------------------------


def test_minilm_gives_the_stored_ids(shared):
    golden = np.load(shared / "golden" / "minilm.npz")
    tokenizer = Tokenizer.from_folder(shared / "models" / "minilm")
    texts = [str(t) for t in golden["texts"]]
    encoded = tokenizer.encode_pairs(texts, max_length=128)
    batch = collate(encoded, None, np.arange(len(texts)), tokenizer.pad_id)
    assert (batch.input_ids == golden["input_ids"]).all()
    assert (batch.attention_mask == golden["attention_mask"].astype(bool)).all()
    assert (batch.token_type_ids == golden["token_type_ids"]).all()
    assert encoded.truncated == 0
    assert [tokenizer.encode(t) for t in texts] == [e.ids for e in encoded]
    for indices in make_batches(encoded, 2):  # as wide as its longest text, not the 128 that the file asks for
        assert collate(encoded, None, indices, 0).input_ids.shape[1] == max(len(encoded[i].ids) for i in indices) < 24


def test_minilm_settings_and_pairs(shared):
    tokenizer = Tokenizer.from_folder(shared / "models" / "minilm")
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 103, None, None)
    assert tokenizer.special_ids == (0, 100, 101, 102, 103)
    assert tokenizer.vocab_size == 30522 and tokenizer.model_max_length == 512
    pair, = tokenizer.encode_pairs(["hello world"], ["again"], max_length=10)
    assert pair.ids == [101, 7592, 2088, 102, 2153, 102] and pair.types == [0, 0, 0, 0, 1, 1]
    assert tokenizer.decode(pair.ids) == "hello world again"
    assert tokenizer.encode("hello", add_special_tokens=False) == [7592]


def test_bert_tiny_gives_the_stored_ids(shared):
    golden = np.load(shared / "golden" / "bert-tiny.npz")
    tokenizer = Tokenizer.from_folder(shared / "models" / "bert-tiny")
    encoded = tokenizer.encode_pairs([str(t) for t in golden["texts"]], max_length=40)
    assert (collate(encoded, None, [0, 1], tokenizer.pad_id).input_ids == golden["input_ids"]).all()
    assert tokenizer.mask_id in golden["input_ids"]


def test_stories_prompt_and_story(shared):
    golden = np.load(shared / "golden" / "stories260K.npz")
    tokenizer = Tokenizer.from_folder(shared / "models" / "stories260K")
    assert tokenizer.encode(str(golden["prompt"])) == golden["prompt_ids"][0].tolist()
    assert tokenizer.decode(golden["greedy"][0]) == str(golden["text"])
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (1, 2, None)
    assert tokenizer.pad_id == 2  # it has no padding token


@pytest.mark.parametrize("name", ["minilm", "stories260K"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_text_of_100_000_characters_is_quick(shared, name, pair):
    """The library's own truncation takes a minute and gigabytes for the pair of many words."""
    tokenizer = Tokenizer.from_folder(shared / "models" / name)
    for text in (" ".join(["wonderful tokenizers of the cat"] * 4000)[:100_000], "a" * 100_000, "短" * 100_000):
        start = time.monotonic()
        encoded = tokenizer.encode_pairs([text], [text] if pair else None, 64)
        assert time.monotonic() - start < 5  # it takes about 0.1 s
        assert len(encoded[0].ids) <= 64 and encoded.truncated <= 1


# ---- truncation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
@pytest.mark.parametrize("pair", [False, True])
def test_truncation_is_that_of_the_library(kind, pair, small):
    """For all lengths of two texts up to seven words, and all limits around them."""
    tokenizer = small if kind == "wordpiece" else Tokenizer(byte_level(), {})
    words = "the cat sat on a mat and".split()
    lengths = [(a, b) for a in range(8) for b in range(8 if pair else 1)]
    first, second = ([" ".join(words[:n]) for n in part] for part in zip(*lengths))
    library, inputs = tokenizer._inner, list(zip(first, second)) if pair else first
    whole = [len(e) for e in library.encode_batch(inputs)]
    for limit in range(4, max(whole) + 2):
        encoded = tokenizer.encode_pairs(first, second if pair else None, limit)
        library.enable_truncation(limit, strategy="longest_first")
        try:
            expected = library.encode_batch(inputs)
        finally:
            library.no_truncation()
        assert [(e.ids, e.types) for e in encoded] == [(e.ids, e.type_ids) for e in expected]
        assert encoded.truncated == sum(n > limit for n in whole)


def test_the_special_tokens_survive_truncation(small):
    cls, sep = (small._inner.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    one, = small.encode_pairs(["the cat " * 20], None, 6)
    assert len(one.ids) == 6 and one.ids[0] == cls and one.ids[-1] == sep
    two, = small.encode_pairs(["the cat " * 20], ["a dog"], 9)
    assert len(two.ids) == 9 and two.ids.count(sep) == 2 and two.ids[-1] == sep
    assert two.types == [0] * (two.ids.index(sep) + 1) + [1] * (8 - two.ids.index(sep))
    assert small.decode(two.ids).endswith("a dog")  # the shorter text is whole


def test_the_default_limit_is_the_tokenizers_own():
    limited = Tokenizer(byte_level(), {"model_max_length": 7})
    assert len(limited.encode_pairs(["the cat sat " * 10])[0].ids) == 7
    unlimited = Tokenizer(byte_level(), {"model_max_length": 10**30})
    assert unlimited.model_max_length is None
    assert unlimited.encode_pairs(["the cat sat " * 10])[0].ids == unlimited.encode("the cat sat " * 10)


def test_stored_padding_and_truncation_are_switched_off():
    inner = byte_level()
    inner.enable_padding(length=50)
    inner.enable_truncation(3)
    tokenizer = Tokenizer(inner, {})
    assert 3 < len(tokenizer.encode("the cat sat on the mat")) < 50


def test_an_empty_text(small):
    assert len(small.encode_pairs([""], None, 8)[0].ids) == 2
    assert Tokenizer(byte_level(), {}).encode_pairs([""], None, 8)[0].ids == []
    assert small.encode_pairs([], None, 8) == []


def test_faults_of_encoding(small):
    with pytest.raises(ValueError, match="max_length: 2 tokens leave no room for text beside 2 special tokens"):
        small.encode_pairs(["a"], None, 2)
    with pytest.raises(ValueError, match="max_length: 3 tokens leave no room for text beside 3 special tokens"):
        small.encode_pairs(["a"], ["b"], 3)
    with pytest.raises(ValueError, match="texts2: expected as many as texts, 2, got 1"):
        small.encode_pairs(["a", "b"], ["c"], 8)
    with pytest.raises(ValueError, match=re.escape(r"encode: expected text, got '\ud800'")):
        small.encode("\ud800")
    with pytest.raises(ValueError, match="encode: expected text, got None"):
        small.encode_pairs(["a"], [None], 8)
    with pytest.raises(ValueError, match="decode: expected ids from 0 on, got -100"):
        small.decode([5, -100])


# ---- folders ---------------------------------------------------------------------------------------------------


def test_save_and_load(small, tmp_path):
    small.save(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    again = Tokenizer.from_folder(tmp_path / "new")
    assert again.encode_pairs(TEXTS, TEXTS[::-1], 9) == small.encode_pairs(TEXTS, TEXTS[::-1], 9)
    for name in ("pad_id", "mask_id", "eos_id", "special_ids", "vocab_size", "settings"):
        assert getattr(again, name) == getattr(small, name)


def test_saved_folders_load_in_transformers(small, tmp_path, peer):
    transformers = peer("transformers")
    small.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs(TEXTS[:2], TEXTS[1:3])
    ours = small.encode_pairs(TEXTS[:2], TEXTS[1:3])
    assert encoded["input_ids"] == [e.ids for e in ours] and encoded["token_type_ids"] == [e.types for e in ours]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (small.pad_id, small.mask_id)


def test_special_tokens_come_from_the_settings_then_from_the_config(tmp_path):
    inner = byte_level()
    end = inner.token_to_id("<|endoftext|>")
    inner.save(str(tmp_path / "tokenizer.json"))
    bare = Tokenizer.from_folder(tmp_path)
    assert (bare.pad_id, bare.eos_id, bare.special_ids) == (0, None, (end,))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [end, 5], "bos_token_id": 10**6, "pad_token_id": None}))
    listed = Tokenizer.from_folder(tmp_path)
    assert (listed.eos_id, listed.pad_id, listed.bos_id) == (end, end, None)
    token = inner.id_to_token(7)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": token, "pad_token": token}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<|endoftext|>"},
                                                                "mask_token": "<none>"}))
    full = Tokenizer.from_folder(tmp_path)
    assert (full.eos_id, full.pad_id, full.mask_id) == (7, end, None)
    assert full.special_ids == tuple(sorted({7, end}))


@pytest.mark.parametrize("files, message", [
    (None, "missing: no such folder; expected a folder with a tokenizer.json"),
    ({}, "missing: no tokenizer.json"),
    ({"vocab.txt": "[PAD]"}, "missing: no tokenizer.json; vocab.txt is an older form: load it with transformers' AutoTokenizer"),
    ({"tokenizer.json": "{"}, "tokenizer.json: not a tokenizer that the library tokenizers can read (EOF"),
    ({"tokenizer.json": "{}"}, "tokenizer.json: not a tokenizer that the library tokenizers can read (Model missing"),
    ({"tokenizer.json": None, "tokenizer_config.json": "{,"},
     "tokenizer_config.json: this tokenizer setting is not JSON (Expecting property name"),
    ({"tokenizer.json": None, "config.json": "[]"}, "config.json: expected a JSON object in this tokenizer setting, got list"),
])
def test_faults_of_a_folder(tmp_path, files, message):
    folder = tmp_path / "missing"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(byte_level().to_str() if content is None else content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_the_library_is_imported_where_it_is_needed(run_python):
    done = run_python("import sys, minipeft.data; print([n for n in ('tokenizers', 'pydoc_data.topics') if n in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="tokenizers: the library is not installed; run: pip install tokenizers"):
        train_wordpiece(TEXTS, 80)


# ---- training --------------------------------------------------------------------------------------------------


def test_trained_wordpiece_is_of_berts_kind(small):
    pieces = [small._inner.id_to_token(i) for i in range(5)]
    assert pieces == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert small.special_ids == (0, 1, 2, 3, 4) and (small.pad_id, small.mask_id) == (0, 4)
    assert 40 < small.vocab_size <= 80
    ids = small.encode("THE CAT sat.")
    assert ids[0] == 2 and ids[-1] == 3 and small.decode(ids) == "the cat sat."
    assert small.encode("the [MASK] sat").count(4) == 1
    assert 1 in small.encode("Ω")


def test_training_gives_the_same_in_every_process(run_python):
    """The library's trainer alone does not: it numbers pieces in the order of a hash table seeded anew in each process."""
    code = """
        import hashlib, random
        from minipeft.data import train_wordpiece
        draw = random.Random(0)
        texts = [" ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(20)) for _ in range(30)]
        print(hashlib.sha256(train_wordpiece(texts, 200)._inner.to_str().encode()).hexdigest())
    """
    prints = {run_python(code, RAYON_NUM_THREADS=threads).stdout for threads in ("1", "2", "4")}
    assert len(prints) == 1 and len(prints.pop().strip()) == 64


def test_faults_of_training():
    with pytest.raises(ValueError, match="train_wordpiece: there are no words in these texts"):
        train_wordpiece(["", "  "], 100)
    with pytest.raises(ValueError, match=re.escape("vocab_size: expected at least 12, for 5 special tokens and the 7 pieces of "
                                                   "one character in these texts, got 11")):
        train_wordpiece(["abc abd"], 11)
    assert [train_wordpiece(["abc abd"], size).vocab_size for size in (12, 13, 100)] == [12, 13, 15]


@pytest.mark.parametrize("family, single, pair, roles", [
    ("bert", "[CLS] a b [SEP]", "[CLS] a [SEP] b [SEP]", {"pad": "[PAD]", "mask": "[MASK]"}),
    ("gpt2", "a b", "a b", {"pad": "<|endoftext|>", "eos": "<|endoftext|>"}),
    ("t5", "a b </s>", "a </s> b </s>", {"pad": "<pad>", "eos": "</s>"}),
])
def test_what_a_family_expects_around_a_text(family, single, pair, roles, tmp_path):
    tokenizer = train_wordpiece(["a b ab ba", "b a"], 60, family)
    tokenizer.save(tmp_path)
    for each in (tokenizer, Tokenizer.from_folder(tmp_path)):
        shown = lambda e, each=each: each.decode(e.ids, skip_special_tokens=False)
        assert shown(each.encode_pairs(["a b"])[0]) == single
        (both,) = each.encode_pairs(["a"], ["b"])
        assert shown(both) == pair and both.types[-1] == (0 if family == "t5" else 1)
        for role in ("pad", "eos", "mask"):
            expected = each.id_of(roles[role]) if role in roles else 0 if role == "pad" else None
            assert getattr(each, f"{role}_id") == expected and (role not in roles or expected in each.special_ids)
    assert tokenizer.id_of("[nothing]") is None
    assert (tokenizer.id_of("<extra_id_19>") is not None) == (family == "t5")
