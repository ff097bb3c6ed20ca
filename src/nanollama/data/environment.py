"""A five-domain text corpus that needs no download: copied from the files of the running Python environment.

    python   Python sources                      of the standard library and of the installed packages
    cpp      C, C++ and CUDA sources             mostly the headers shipped with torch
    prose    documentation and licences          README, licence texts, package descriptions, pydoc topics
    web      HTML, JavaScript and CSS            also those inside zip archives
    data     JSON, CSV, YAML and TOML
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..config import ConfigError
from .manifest import NAME, Manifest, build_manifest, make_folder
from .near_duplicates import SeenTexts

DOMAINS = ("python", "cpp", "prose", "web", "data")
SUFFIXES = {
    ".py": "python",
    **dict.fromkeys((".h", ".hh", ".hpp", ".cuh", ".c", ".cc", ".cpp"), "cpp"),
    **dict.fromkeys((".md", ".rst"), "prose"),
    **dict.fromkeys((".html", ".htm", ".js", ".mjs", ".css"), "web"),
    **dict.fromkeys((".json", ".csv", ".yaml", ".yml", ".toml"), "data"),
}
PROSE = re.compile(r"(metadata|(readme|licen[cs]e|copying|notice|changelog|changes|news|history|contributing)[\w.-]*)", re.IGNORECASE)
SMALLEST = 256  # bytes; shorter files say little
LARGEST = 256 << 10  # bytes of one file that are taken: its beginning, so that no bundle or table fills a domain
MIN_DOMAIN = 128 << 10  # bytes; less is too little to train and validate on

Candidate = tuple[str, Callable[[], bytes]]  # a name that is the same on every machine, and how to read it


def environment_corpus(cache: Path, domain_bytes: int = 8 << 20, held_out: float = 0.1) -> Manifest:
    """The corpus of the running environment, with about ``domain_bytes`` of each domain (less where there is less).

    Copied on the first call to ``cache/environment-<domain_bytes>-<held_out>`` in a few seconds; later calls verify and return it,
    also after packages were upgraded, so that the trainings of a study share their data. It depends on the installed packages only.

    Raises:
        ConfigError: a domain has fewer than 128 KiB, or a file of an existing corpus is missing or changed.
    """
    if domain_bytes < MIN_DOMAIN:
        raise ConfigError(f"domain_bytes is {domain_bytes:,}; a domain needs at least {MIN_DOMAIN:,} bytes")
    folder = Path(cache) / f"environment-{domain_bytes}-{held_out:g}"
    if not (folder / NAME).exists():
        make_folder(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".environment-") as temporary:
            made = Path(temporary) / "corpus"
            _copy_domains(made / "files", domain_bytes)
            build_manifest(made, {domain: made / "files" / domain for domain in DOMAINS}, held_out).write()
            _publish(made, folder)
    manifest = Manifest.read(folder)
    manifest.verify()
    return manifest


def _publish(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        if not (folder / NAME).exists():  # else another process was faster, with the same contents
            raise ConfigError(f"{folder} is in the way: it is no corpus (no {NAME}) and not empty; delete it") from None


def _copy_domains(folder: Path, domain_bytes: int) -> None:
    candidates = _candidates()
    seen = SeenTexts()
    for domain in DOMAINS:
        found = 0
        for name, text in _select(candidates[domain], domain_bytes, seen):
            path = folder / domain / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
            found += len(text)
        if found < MIN_DOMAIN:
            raise ConfigError(
                f"the Python environment has {found:,} bytes of domain {domain}, {MIN_DOMAIN:,} are needed; install the locked "
                "requirements, or give folders of text files of your own"
            )


def _select(candidates: dict[str, Callable[[], bytes]], domain_bytes: int, seen: SeenTexts) -> Iterator[tuple[str, bytes]]:
    """Candidates in the order of their names' hashes, until ``domain_bytes`` are reached; no binaries, stubs or near-duplicates."""
    largest = min(LARGEST, domain_bytes // 16)
    left = domain_bytes
    for name in sorted(candidates, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = _excerpt(candidates[name](), min(largest, left))
        # half of it known: licences, vendored copies and generated siblings, which would leak held-out text into the training split
        if len(text) < SMALLEST or seen.share(text) > 0.5:
            continue
        seen.add(text)
        yield name, text
        left -= len(text)
        if left < SMALLEST:
            return


def _excerpt(data: bytes, largest: int) -> bytes:
    """The beginning of ``data``, cut after a line where lines are short; empty if it is not UTF-8 text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return b""
    if b"\0" in data:
        return b""
    if len(data) <= largest:
        return data
    data = data[:largest]
    line_end = data.rfind(b"\n") + 1
    return data[:line_end] if line_end > largest // 2 else data.decode(errors="ignore").encode()


def _candidates() -> dict[str, dict[str, Callable[[], bytes]]]:
    """Per domain: name of every file that may serve, and how to read it."""
    found: dict[str, dict[str, Callable[[], bytes]]] = {domain: {} for domain in DOMAINS}
    for label, root in _roots():
        for path in _walk(root):
            name = f"{label}/{path.relative_to(root).as_posix()}"
            if path.suffix == ".zip":
                for member, read in _zip_members(path):
                    found["web"].setdefault(f"{name}/{member}", read)
            elif path.name == "METADATA":
                found["prose"].setdefault(name, partial(_description, path))
            elif domain := _domain(path.name):
                found[domain].setdefault(name, path.read_bytes)
    found["python"].pop("stdlib/pydoc_data/topics.py", None)  # it is prose in a Python dictionary: taken by topic
    found["prose"].update(_pydoc_topics())
    return found


def _description(metadata: Path) -> bytes:
    return metadata.read_bytes().partition(b"\n\n")[2]  # after the headers, usually the README


def _domain(name: str) -> str | None:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    return "prose" if PROSE.fullmatch(name) else None


def _roots() -> list[tuple[str, Path]]:
    """The standard library and every folder that our packages are installed in, each with a name that is the same on all machines."""
    paths = sysconfig.get_paths()
    packages = [Path(paths["purelib"]), Path(paths["platlib"])]
    for name in ("torch", "numpy"):  # wherever they really are: a user's or a system's site folder
        spec = importlib.util.find_spec(name)
        packages += [Path(folder).parent for folder in (spec.submodule_search_locations or [])] if spec else []
    unique = dict.fromkeys(path.resolve() for path in packages if path.is_dir())
    return [("stdlib", Path(paths["stdlib"])), *(("packages", path) for path in unique)]


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        hidden = {name for name in subfolders if name.startswith((".", "__pycache__"))}
        subfolders[:] = sorted(set(subfolders) - hidden - {"site-packages", "dist-packages"})
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _zip_members(path: Path) -> Iterator[Candidate]:
    if not zipfile.is_zipfile(path):
        return

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir() and _domain(info.filename) == "web"]
    for name in names:
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, partial(read, name)


def _pydoc_topics() -> Iterator[Candidate]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name, text in topics.items():
        yield f"pydoc/{re.sub(r'[^A-Za-z0-9]', '_', name)}.txt", text.encode
