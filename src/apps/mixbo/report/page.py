"""The page of a sweep: the answer first, then how it came about, then everything else."""

from __future__ import annotations

import time
from collections.abc import Callable

from src.nanollama.config import read_result
from src.nanollama.report import Page, Section

from .answer import answer_in_words, answer_section, cost_section
from .bought import bought_section
from .calibration import calibration_section
from .folder import Sweep
from .simplex import simplex_section
from .trials import curves_section, settings_section, trials_section
from .trust import trust_section

SECTIONS: tuple[Callable[[Sweep], Section | None], ...] = (
    answer_section,
    cost_section,
    bought_section,
    trust_section,
    simplex_section,
    calibration_section,
    curves_section,
    trials_section,
    settings_section,
)


def sweep_page(sweep: Sweep) -> Page:
    """Every section that has something to show."""
    page = Page(f"The best mixture for {sweep.problem.fidelities.sizes[-1]}", answer_in_words(sweep), facts(sweep))
    return page.add(*(section for make in SECTIONS if (section := make(sweep)) is not None))


def facts(sweep: Sweep) -> list[str]:
    """Who searched, how far, at what cost."""
    records = sweep.records
    counts = {status: sum(record.status == status for record in records) for status in ("running", "failed")}
    trials = f"{len(records)} trials" + "".join(f", {count} {status}" for status, count in counts.items() if count)
    found = [
        f"strategy {sweep.name}",
        trials,
        f"{sweep.spent:.3g} full runs of {sweep.problem.fidelities.sizes[-1]} spent ({sweep.spent * sweep.problem.full_run:.2g} FLOPs)",
    ]
    result = read_result(sweep.folder)
    if result and result.get("stopped_because"):
        found.append(f"stopped: {result['stopped_because']}")
    elif result and result["status"] != "ok":
        found.append(f"the sweep is {result['status']}")
    return [*found, f"seed {sweep.cfg.seed}", time.strftime("%d %B %Y, %H:%M").lstrip("0")]
