"""``python -m src.nanollama.generate``: text in, text out; numbers in, numbers out; errors that say what to do."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from src.apps.gssm.train import train as train_gssm
from src.apps.mixbo.train import train as train_text
from src.nanollama.config.main import run_command
from src.nanollama.generate import codec, main
from src.nanollama.model import hf

SMALL = ["model.emb_dim=16", "model.nb_layers=1", "model.nb_heads=1", "data.seq_len=16", "data.batch_size=2", "eval.sequences=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for domain in ("a", "b"):
        (folder / "corpus" / domain).mkdir(parents=True)
        for i in range(4):
            (folder / "corpus" / domain / f"{i}.txt").write_text(f"{domain}{i} " * 50)
    text = [f"data.corpus={folder}/corpus", f"data.cache={folder}/cache", "data.held_out=0.5", "train.steps=60", "optim.lr=1e-2"]
    gssm = ["config=src/apps/gssm/configs/debug.yaml", "train.steps=2"]
    for name, command, args in (("text", train_text, text), ("gssm", train_gssm, gssm)):
        assert run_command(command.entry, command.__wrapped__, [*args, *SMALL, f"run_dir={folder}/{name}"]) == 0  # type: ignore[attr-defined]
    return folder


def said(capsys, *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def test_text_goes_on_after_its_prompt(runs, capsys) -> None:
    first = said(capsys, runs / "text", "prompt=a1 a1 ", "tokens=30", "temperature=0")
    assert first.startswith("a1 a1 ") and len(first.rstrip("\n")) >= 30
    assert first == said(capsys, runs / "text" / "checkpoints" / "60", "prompt=a1 a1 ", "tokens=30", "temperature=0")


def test_the_compiled_step_says_the_same(runs, capsys) -> None:
    asked = runs / "text", "prompt=a1 ", "tokens=20", "temperature=0.5"
    assert said(capsys, *asked, "compile=aot_eager") == said(capsys, *asked)


def test_a_seed_gives_the_same_text_and_another_does_not(runs, capsys) -> None:
    texts = [said(capsys, runs / "text", "tokens=40", "temperature=1.5", f"seed={seed}") for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_numbers(runs, capsys) -> None:
    lines = said(capsys, runs / "gssm", "prompt=3,1,4", "tokens=5", "n=2").splitlines()
    assert lines[0] == "--- 1 of 2" and lines[2] == "--- 2 of 2"
    assert all(line.startswith("3 1 4 ") and len(line.split()) == 8 for line in (lines[1], lines[3]))


def test_a_llama_folder_says_what_the_run_that_it_was_written_from_says(runs, capsys, tmp_path) -> None:
    assert hf.main([str(runs / "gssm"), f"out={tmp_path}/llama"]) == 0 and capsys.readouterr()
    asked = "prompt=3,1,4", "tokens=20", "temperature=0"
    assert said(capsys, tmp_path / "llama", *asked) == said(capsys, runs / "gssm", *asked)


def test_a_llama_folder_with_a_tokenizer_takes_and_gives_text(runs, capsys, tmp_path) -> None:
    assert hf.main([str(runs / "gssm"), f"out={tmp_path}/llama"]) == 0 and capsys.readouterr()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "llama" / "tokenizer.json"))
    numbers = said(capsys, runs / "gssm", "prompt=3,1,4", "tokens=9", "temperature=0").split()
    assert said(capsys, tmp_path / "llama", "prompt=w3 w1 w4", "tokens=9", "temperature=0").split() == [f"w{i}" for i in numbers]


def test_a_run_with_a_tokenizer_takes_it_along(runs, capsys, tmp_path) -> None:
    words = Tokenizer(models.WordLevel({"?": 0, "a0": 1, "a1": 2, "a2": 3, "a3": 4, "b1": 5}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="? $A", special_tokens=[("?", 0)])  # trainings leave it out
    words.save(str(tmp_path / "words.json"))
    text = [f"data.corpus={runs}/corpus", f"data.cache={tmp_path}/cache", "data.held_out=0.5", f"data.tokenizer={tmp_path}/words.json"]
    asked = "prompt=a1 a1", "tokens=7", "temperature=0"
    assert run_command(train_text.entry, train_text.__wrapped__, [*text, *SMALL, "train.steps=9", f"run_dir={tmp_path}/run"]) == 0  # type: ignore[attr-defined]
    assert hf.main([str(tmp_path / "run"), f"out={tmp_path}/llama"]) == 0 and capsys.readouterr()
    assert said(capsys, tmp_path / "llama", *asked) == said(capsys, tmp_path / "run", *asked)
    assert AutoTokenizer.from_pretrained(tmp_path / "llama")("a1 b1 a3")["input_ids"] == [2, 5, 4]


ENDS = [
    ({}, None),
    ({"eos_token_id": 8}, None),
    ({"eos_token_id": [8, 30]}, None),
    ({}, {"eos_token_id": [30]}),
    ({"eos_token_id": 8}, {"bos_token_id": 1}),  # the second file counts whole: no end
]


@pytest.mark.parametrize(("ends", "generation"), ENDS)
def test_a_llama_folder_starts_and_ends_as_transformers_does(capsys, tmp_path, ends: dict, generation: dict | None) -> None:
    torch.manual_seed(3)
    shape = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.5)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "eos_token_id"} | ends))
    (tmp_path / "generation_config.json").unlink()
    if generation:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    words = Tokenizer(models.WordLevel({"<s>": 1} | {f"w{i}": i for i in range(32) if i != 1}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(tmp_path)
    theirs, tokenizer = LlamaForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for prompt in ("w3 w1 w4", "w5", "w9 w9", "w17 w20"):
        given = tokenizer(prompt, return_tensors="pt")
        assert given["input_ids"][0, 0] == 1
        ids = theirs.generate(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=40, do_sample=False)[0]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert said(capsys, tmp_path, f"prompt={prompt}", "tokens=40", "temperature=0") == expected + "\n"


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "name one run folder"),
        (["nowhere"], "neither a checkpoint nor a run folder"),
        (["{gssm}", "prompt=abc"], "token numbers only"),
        (["{gssm}", "prompt=99"], "from 0 to"),
        (["{gssm}", "temperature=-1"], "temperature"),
        (["{gssm}", "tokens=many"], "whole number"),
        (["{gssm}", "tokens=0"], "at least 1"),
        (["{gssm}", "n=-1"], "at least 1"),
        (["{gssm}", "compile=gcc"], "has no such backend; it has"),
        (["{gssm}", "top=3"], "no such option"),
    ],
)
def test_wrong_input(runs, capsys, argv, message) -> None:
    assert main([arg.format(gssm=runs / "gssm") for arg in argv] or ["prompt=1"]) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_in_the_home_folder_is_found_as_it_was_for_training(tmp_path, monkeypatch) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"word": 0, "?": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert codec({"tokenizer": "~/tokenizer.json"}).encode("word") == [0]
