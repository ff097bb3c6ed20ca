"""The notebook runs from top to bottom on real run folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "compare_runs.ipynb"
ROOT = NOTEBOOK.parents[1]
CHECK = """
assert len(trained) == 1 and len(figure.data) == 1 and figure.data[0].name.endswith("(excess_loss)"), (trained, figure.data)
assert all(y > 0 for y in figure.data[0].y) and {bar.name for bar in time.data} >= {"forward", "backward"}
"""


def test_every_cell_runs(tmp_path: Path) -> None:
    train = ["src.apps.gssm.train", "src/apps/gssm/configs/debug.yaml", "train.steps=4", "eval.period=2", "train.log_period=1"]
    small = ["model.emb_dim=16", "model.nb_layers=1", "model.nb_heads=1", "data.seq_len=16", "data.batch_size=2", "eval.sequences=4"]
    subprocess.run([sys.executable, "-m", *train, *small, f"run_dir={tmp_path}/run"], cwd=ROOT, check=True, capture_output=True)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # what was measured elsewhere is not shown as if it were here
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "RUNS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code + CHECK], cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
