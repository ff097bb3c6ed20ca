from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from src.nanollama.report import Chip, Column, Figure, Page, Panels, Prose, Section, Status, Table
from src.nanollama.report.__main__ import main
from src.nanollama.report.difficulty import disagreement

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


class Parsed(HTMLParser):
    """Elements with attributes, the text outside scripts and styles, and the contents of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            (self.scripts if self._inside == "script" else self.styles)[-1] += data
        else:
            self.text += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The figures as the page's script reads them."""
        kinds = [attrs.get("type") for tag, attrs in self.elements if tag == "script"]
        return [json.loads(script) for script, kind in zip(self.scripts, kinds, strict=True) if kind == "application/json"]


@pytest.fixture
def everything(tmp_path: Path, gssm_run, text_run, difficulty_run) -> Path:
    root = tmp_path / "runs"
    difficulty_run(root / "difficulty", 1.71)
    gssm_run(root / "infer", 1.71)
    gssm_run(root / "predict", 1.23, 5e-2)
    text_run(root / "text")
    return root


def report(root: Path, *options: str) -> Parsed:
    out = root / "report.html"
    assert main([str(root), *options]) == 0
    return Parsed(out.read_text())


def test_nothing_is_fetched_and_only_our_scripts_run(everything: Path) -> None:
    page = report(everything)
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert not {"src", "href", "srcset", "action", "data", "poster"} & attrs.keys(), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
    assert not any(word in style for style in page.styles for word in ("url(", "@import", "://"))
    kinds = [attrs.get("type") for tag, attrs in page.elements if tag == "script"]
    runnable = [script for script, kind in zip(page.scripts, kinds, strict=True) if kind is None]
    assert len(runnable) == 2 and "://" not in runnable[1]
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and "Content-Security-Policy" in attrs.values()) or ""
    digests = ["sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in runnable]
    assert policy.startswith("default-src 'none'; script-src " + " ".join(f"'{digest}'" for digest in digests))
    assert "http" not in policy and "unsafe-eval" not in policy


def test_every_runs_numbers_appear(everything: Path) -> None:
    page = report(everything, "title=Two settings")
    for shown in (
        "Two settings",
        "infer",
        "predict",
        "text",
        "812\N{NO-BREAK SPACE}k",
        "1.23\N{NO-BREAK SPACE}M",
        "1.7100",
        "1.2300",
        "1 min 21 s",
        "0.748",
        "3.381",
        "3.150",
    ):
        assert shown in page.text, shown
    last = {name: json.loads((everything / name / "result.json").read_text()) for name in ("infer", "predict")}
    for result in last.values():
        assert f"{result['loss']:.4f}" in page.text and f"{result['excess_loss']:.4f} ± 0.0040" in page.text
    losses = next(figure for figure in page.figures if any(trace.get("line", {}).get("dash") == "dash" for trace in figure["data"]))
    floors = [trace["y"][0] for trace in losses["data"] if trace["line"].get("dash") == "dash"]
    assert floors == [1.71, 1.23]
    for name, result in last.items():
        curve = next(trace for trace in losses["data"] if trace["name"] == name and trace["mode"] == "lines+markers")
        assert curve["y"][-1] == result["loss"] and curve["x"][-1] == result["tokens"]


def test_the_ladder_pairs_data_with_the_training_on_it(everything: Path, difficulty_run) -> None:
    difficulty_run(everything / "untrained", alpha_X=0.3)
    ladder = next(figure for figure in report(everything).figures if any(trace.get("name") == "exact floor" for trace in figure["data"]))
    by_name = {trace.get("name"): trace for trace in ladder["data"]}
    assert by_name["exact floor"]["y"] == ["difficulty", "untrained"]
    loss = json.loads((everything / "infer" / "result.json").read_text())["loss"]
    assert by_name["transformer, as trained here"]["x"] == [loss, None]
    assert by_name["transformer, as trained here"]["marker"]["color"] == ["var(--c1)", "var(--faint)"]


def test_gzips_disagreement_is_told_only_where_there_is_one() -> None:
    a = {"setting": "a", "gzip_legacy": 0.75, "bayes_loss": 1.7}
    assert disagreement([a, {**a, "setting": "b"}, {**a, "setting": "c", "bayes_loss": None}]) == ""
    assert disagreement([a, {"setting": "b", "gzip_legacy": 0.74, "bayes_loss": 1.2}]) == (
        "gzip sees a and b at 0.75 and 0.74 bytes per token; their floors are 1.70 and 1.20 nats per token."
    )


def test_every_axis_has_a_name(everything: Path) -> None:
    for figure in report(everything).figures:
        assert figure["layout"]["xaxis"]["title"]["text"]


def test_hostile_names_and_settings_stay_text(tmp_path: Path, gssm_run, text_run, difficulty_run) -> None:
    root = tmp_path / "runs"
    name = EVIL.replace("/", "∕")
    gssm_run(root / name, note=EVIL, **{EVIL: EVIL})
    gssm_run(root / "other", note="", **{EVIL: ""})
    difficulty_run(root / ("difficulty " + name))
    bad = text_run(root / "text")
    (bad / "metrics.jsonl").write_text((bad / "metrics.jsonl").read_text().replace("valid/cpp", json.dumps(EVIL)[1:-1]))
    (bad / "result.json").write_text(json.dumps({"status": EVIL, "message": EVIL}))
    page = report(root, f"title={EVIL}")
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags and tags.count("h1") == 1
    assert sum(tag == "script" and not attrs.get("type") for tag, attrs in page.elements) == 2
    assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
    assert EVIL in page.text and name in page.text and "49" not in page.text.split("Summary")[0]
    for figure in page.figures:
        for trace in figure["data"]:
            assert "<" not in str(trace.get("name", "")) and not [y for y in trace["y"] if isinstance(y, str) and "<" in y]


def test_damaged_runs_are_shown_as_such(tmp_path: Path, gssm_run) -> None:
    root = tmp_path / "runs"
    gssm_run(root / "good")
    torn = gssm_run(root / "torn")
    (torn / "result.json").write_text('{"status": "o')
    (torn / "metrics.jsonl").write_text("{}\n" + (torn / "metrics.jsonl").read_text()[:700])
    empty = root / "empty"
    empty.mkdir()
    (empty / "env.json").write_text("{}")
    odd = gssm_run(root / "odd")
    odd_records = [
        {"step": 1, "tokens": None, "split": "train", "loss": math.nan, "bayes_loss": "x"},
        {"step": 2, "split": "valid", "loss": 1},
    ]
    (odd / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in odd_records))
    (odd / "result.json").write_text(json.dumps({"status": "nan", "loss": math.nan, "final": 3, "message": ["x"]}))
    (odd / "config.yaml").write_text(yaml.safe_dump({"gssm": "x", 3: {"a": None}}))
    family = {"status": "ok", "final/test_loss": 1.0}  # of runs that were edited, or are of another program
    for name, model in (("null", None), ("word", "tiny"), ("deep", {"family": "deep"}), ("shallow", {"family": "shallow"})):
        gssm_run(root / name, model=model)
        (root / name / "result.json").write_text(json.dumps(family))
    (root / "word" / "metrics.jsonl").write_text('{"step": 1, "split": "valid/x", "loss": 1.0, "bits_per_byte": 2.0}\n')
    page = report(root)
    for shown in ("torn", "result.json is not readable", "1 unreadable line left out", "empty", "config.yaml is missing", "odd", "nan"):
        assert shown in page.text, shown


def test_command_line(everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "deep" / "page.html", tmp_path / "data"
    assert main([str(everything / "infer"), str(everything / "predict"), f"out={out}", f"csv={data}"]) == 0
    printed = capsys.readouterr().out
    assert str(out) in printed and out.is_file() and "infer" in printed and "1.2300" in printed
    assert {path.name for path in data.iterdir()} == {"runs.csv", "curves.csv", "difficulty.csv", "text.csv"}
    assert main([str(tmp_path / "nowhere")]) == 2 and "no such folder" in capsys.readouterr().err
    assert main(["out=x.html"]) == 2 and "name at least one run" in capsys.readouterr().err
    assert main(["--help"]) == 0


def test_a_per_cent_sign_stays_with_its_number(tmp_path: Path) -> None:
    page = Page("T", "from 90 % on").add(Section("S", [Table([Column("Share")], [["25 %"]], "of 7 %")]))
    page.write(tmp_path / "page.html")
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert all(text in parsed.text for text in ("90\u00a0%", "25\u00a0%", "7\u00a0%"))
    hashed = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in parsed.scripts if "Plotly" in script]
    assert hashed and all(any(name in str(attrs) for _, attrs in parsed.elements) for name in hashed)  # scripts stay as they are


def test_library(tmp_path: Path) -> None:
    figure = Figure(
        [{"x": np.arange(3), "y": [1.0, math.nan, math.inf], "name": "a<b", "line": {"color": "var(--c1)/0.5"}}],
        {"xaxis": {"title": {"text": "steps"}}},
        "Caption",
    )
    table = Table([Column("Run", numeric=False), Column("State")], [[Chip("<i>x</i>", "var(--c2)"), Status("nan")]])
    page = Page("Title").add(Section("One", [Prose("a < b"), table, figure, Panels([figure, figure])]), Section("Two", [], collapsed=True))
    page.write(tmp_path / "page.html")
    parsed = Parsed((tmp_path / "page.html").read_text())
    assert parsed.figures[0]["data"][0] == {"x": [0, 1, 2], "y": [1.0, None, None], "name": "a&lt;b", "line": {"color": "var(--c1)/0.5"}}
    assert len(parsed.figures) == 3 and "a < b" in parsed.text and "<i>x</i>" in parsed.text
    assert [tag for tag, _ in parsed.elements].count("details") == 1
