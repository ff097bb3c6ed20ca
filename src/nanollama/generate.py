"""Let a trained model go on from a prompt.

    python -m src.nanollama.generate RUN [prompt=TEXT] [tokens=200] [temperature=0.8] [top_k=K] [top_p=P] [n=1] [seed=0] [device=auto]
                                         [compile=BACKEND]

RUN is a run folder, one of its checkpoints, or a Llama folder of Hugging Face. A model of text takes and gives text (bytes, or the tokens
of the tokenizer it was trained with); any other model takes and gives token numbers, such as prompt=3,1,4. With a Llama folder prompts are
encoded as its tokenizer.json says, which may put a start token before them, and completions end at the end tokens of its
generation_config.json or config.json. temperature=0 always takes the most likely token. The same seed gives the same text.
compile=inductor (or another backend of torch.compile) compiles the step that adds a token, which takes a minute and pays on a GPU for many
tokens. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .config import ConfigError
from .config.tool import run_tool, split

if TYPE_CHECKING:
    import torch

    from .model.transformer import Transformer

OPTIONS = ("prompt", "tokens", "temperature", "top_k", "top_p", "n", "seed", "device", "compile")
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Codec:
    """Between what a person types and tokens; ``default`` is the prompt if none is given."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    default: str


def codec(data: dict[str, Any]) -> Codec:
    """The codec of a run by its ``data`` config."""
    if data.get("tokenizer"):
        return _tokenizer(Path(data["tokenizer"]).expanduser(), start=False)
    if "corpus" in data:
        return Codec(lambda text: list(text.encode()), lambda ids: bytes(ids).decode(errors="replace"), "\n")
    return Codec(_numbers, lambda ids: " ".join(map(str, ids)), "0")


def _tokenizer(file: Path, start: bool) -> Codec:
    """That of a tokenizer.json; ``start``: with the special tokens that it puts around a text."""
    from .data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(file)
    return Codec(lambda text: tokenizer.encode(text, add_special_tokens=start).ids, lambda ids: tokenizer.decode(list(ids)), "\n")


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"prompt={text}: this model knows token numbers only, such as prompt=3,1,4") from None


def complete(argv: Sequence[str]) -> None:
    """Print ``n`` completions, each after the prompt."""
    paths, options = split(argv, OPTIONS)
    if len(paths) != 1:
        raise ConfigError(f"name one run folder, got {len(paths)}")
    count, seed, tokens = (_number(options, key, default, int) for key, default in (("n", 1), ("seed", 0), ("tokens", 200)))
    if count < 1 or tokens < 1:
        raise ConfigError(f"n={count}, tokens={tokens}: both must be at least 1")
    temperature = _number(options, "temperature", 0.8, float)
    top_k = _number(options, "top_k", 0, int) if "top_k" in options else None
    top_p = _number(options, "top_p", 1.0, float) if "top_p" in options else None

    from .distributed import pick_device
    from .model.generate import generate, sampler

    model, words, stop = _open(Path(paths[0]).expanduser(), pick_device(options.get("device", "auto")))
    prompt = options.get("prompt", words.default)
    try:
        choose = sampler(temperature, top_k, top_p)
        backend = _backend(options.get("compile"))
        found = generate(model, [words.encode(prompt)] * count, tokens, sample=choose, stop=stop, seed=seed, backend=backend)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for i, completion in enumerate(found):
        print((f"--- {i + 1} of {count}\n" if count > 1 else "") + words.decode([*words.encode(prompt), *completion]))


def _open(path: Path, device: torch.device) -> tuple[Transformer, Codec, Sequence[int]]:
    """A model, what its tokens are, and those that end a text."""
    from .checkpoint.opened import open_model
    from .model import hf

    if not hf.is_llama(path):
        model, config = open_model(path, device)
        return model, codec(config["data"]), ()
    file = path / "tokenizer.json"
    return hf.load(path).to(device).eval(), _tokenizer(file, start=True) if file.is_file() else codec({}), hf.end_tokens(path)


def _backend(name: str | None) -> str | None:
    import torch

    if name is not None and name not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise ConfigError(f"compile={name}: torch.compile has no such backend; it has {', '.join(known)}")
    return name


def _number(options: dict[str, str], key: str, default: T, kind: type[T]) -> T:
    try:
        return kind(options.get(key, default))
    except ValueError:
        raise ConfigError(f"{key}={options[key]}: must be {'a whole number' if kind is int else 'a number'}") from None


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, complete)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
