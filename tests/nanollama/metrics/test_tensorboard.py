"""What TensorBoard gets."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from src.nanollama.metrics.sinks import CHARTS, TensorBoard


def test_a_run_that_starts_over_replaces_its_curves(tmp_path: Path) -> None:
    """Killed before its first checkpoint."""
    for loss, steps in ((3.0, (10, 20, 30)), (2.0, (10, 20))):
        sink = TensorBoard(tmp_path, {})
        for step in steps:
            sink.write({"step": step, "split": "train", "loss": loss})
        sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [(10, 2.0), (20, 2.0)]


def test_losses_share_a_chart_with_their_floor(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {}, charts=CHARTS)
    record = {"step": 3, "tokens": 9, "split": "valid", "loss": 2.0, "loss_se": 0.1, "bayes_loss": 1.5, "lr": None, "final/test_loss": 2.0}
    sink.write(record)
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss/valid", "bayes_loss/valid", "final/test_loss"}
    layout = Layout.FromString(events.Tensors(CONFIG_SUMMARY_TAG)[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert list(charts) == list(CHARTS["training"])
    assert charts["loss and its floor, nats per token"] == ["^loss/", "^bayes_loss/"]
