"""What one command leaves to be shown, another command's report shows; damaged or hostile files change nothing else."""

import pytest

from src.nanollama.report import Chip, Column, Figure, Page, Panels, Prose, Section, Status, Table
from src.nanollama.report.runs import find_runs
from src.nanollama.report.stored import store, stored
from src.nanollama.report.training import training_page

FIGURE = Figure([{"x": [1, 2], "y": [3.0, float("nan")], "name": "a<b>"}], {"xaxis": {"title": "FLOPs"}}, "See.", "value")
PAGE = Page("Mixtures <i>", "In words.").add(
    Section("Answer", [Prose("Take all."), Table([Column("size")], [["nano"], [Chip("b", "var(--c1)")], [Status("ok")]])], "Lead."),
    Section("Cost", [FIGURE, Panels([FIGURE], "Two.")], collapsed=True),
    Section("Left out", []),
)


def test_sections_come_back_as_they_were(tmp_path) -> None:
    store(PAGE, tmp_path, first=2)
    head, answer, cost = stored(tmp_path)
    assert (head.title, head.lead, head.blocks) == ("Mixtures <i>", "In words.", [])
    assert answer == PAGE.sections[0]
    assert cost.collapsed and cost.blocks[1].caption == "Two." and cost.blocks[0].data[0]["y"] == [3.0, None]
    assert Page("t").add(*stored(tmp_path)).render().count("Take all.") == 1


def test_a_folder_that_speaks_for_itself_hides_the_runs_below_it(tmp_path) -> None:
    for name in ("run", "sweep", "sweep/trials/0"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text('{"status": "ok"}')
    store(PAGE, tmp_path / "sweep", first=2)
    assert [run.name for run in find_runs([tmp_path])] == ["run", "sweep"]
    assert len(find_runs([tmp_path / "sweep"])) == 2  # asked for by name, its trials are shown
    page = training_page(find_runs([tmp_path])).render()
    assert "Take all." in page and "Mixtures &lt;i&gt;" in page and "Mixtures <i>" not in page


@pytest.mark.parametrize("text", ["[]", "{}", '{"title": "t", "lead": "", "sections": [{"title": "x"}]}', "torn {"])
def test_damaged_sections_are_named_and_cost_nothing_else(text: str, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"status": "ok"}')
    (tmp_path / "run" / "sections.json").write_text(text)
    with pytest.raises(ValueError):
        stored(tmp_path / "run")
    assert "sections.json" in training_page(find_runs([tmp_path])).render()
