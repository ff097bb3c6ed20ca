"""Evaluation of a saved checkpoint, without training (``eval.checkpoint=FOLDER``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ..checkpoint.store import load
from ..config import RunFolder
from ..distributed import Ranks
from ..launcher.signals import StopFlag, stopped
from ..metrics.sinks import Jsonl
from ..model.transformer import Transformer
from .evaluate import HeldOut, evaluate
from .look_inside import look_inside
from .resolve import Training


def evaluate_saved(cfg: Training, run: RunFolder, held_out: Mapping[str, HeldOut], here: Ranks, stop: StopFlag) -> dict[str, Any]:
    """Losses of the checkpoint that ``cfg.eval.checkpoint`` names, as a run's ``result.json`` has them; nothing is trained.

    Raises Interrupted or Requeue when asked to stop.
    """

    def stop_if_asked() -> None:
        if kind := here.max(stop.kind):
            raise stopped(kind, f"{cfg.eval.checkpoint} is not evaluated yet; the same command starts over")

    assert cfg.eval.checkpoint is not None
    model = Transformer(cfg.model).to(here.device)
    here.shard(model, model.layers, cfg.train.parallel)
    numbers = load(Path(cfg.eval.checkpoint), {"model": get_model_state_dict(model)}, here)
    records = evaluate(model, held_out, cfg.train, here, stop_if_asked)
    probed = look_inside(model, cfg, held_out, here)
    position = {"step": numbers["step"], "tokens": numbers["tokens"], "flops": numbers["flops"]}
    if here.rank == 0:
        sink = Jsonl(run.path / "metrics.jsonl", resume_step=-1)
        for split, record in {**records, **probed}.items():
            sink.write({**position, "split": split, **record})
        sink.close()
    about = {"steps": numbers["step"], **position, "checkpoint": cfg.eval.checkpoint}
    return {**main_split(records), "final": records, "probed": probed, **about}


def main_split(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the split ``valid``, which stand at the top of a result; empty where there are only splits of domains."""
    keys = ("loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se", "bits_per_byte")
    return {key: records["valid"][key] for key in keys if key in records.get("valid", {})}
