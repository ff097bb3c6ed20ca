"""The newest record of a file that may be growing."""

from pathlib import Path

from src.nanollama.metrics.sinks import newest


def test_newest_whole_record_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert newest(path, "train") is None
    lines = [f'{{"split": "train", "step": {step}}}' for step in range(5000)] + ['{"split": "valid", "step": 7}', '{"split": "tr']
    path.write_text("\n".join(lines))
    assert newest(path, "train") == {"split": "train", "step": 4999}
    assert newest(path, "valid") == {"split": "valid", "step": 7}
    assert newest(path, "test") is None
