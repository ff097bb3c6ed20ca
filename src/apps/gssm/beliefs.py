"""What do the layers of a trained model know about the latent states?

    python -m src.apps.gssm.beliefs checkpoint=RUN

Linear and small MLP probes read, from each layer's activations at position t, the exact filtered marginals p(z_i | x_<=t) of every latent
and the states z_i themselves. A probe can find much where a model has learned nothing, so it is run beside: the same model before
training, targets shuffled between sequences, and features that just hold the last k tokens. Writes ``beliefs.json`` and ``beliefs.html``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from src.nanollama.config import ConfigError, RunFolder, main, write_json

from .inspect_config import BELIEFS, BeliefsConfig

if TYPE_CHECKING:
    import torch

    from src.nanollama.model.transformer import Transformer

    from .inspection import Trained

Array = np.ndarray
TARGETS = ("beliefs", "states")


@main(BELIEFS)
def beliefs(cfg: BeliefsConfig, run: RunFolder) -> dict[str, Any]:
    """Fit every probe, print the table, write the report."""
    from .inspection import open_trained
    from .pages import beliefs_page

    trained = open_trained(cfg)
    found = Study(trained, cfg).run()
    write_json(run.path / "beliefs.json", found)
    beliefs_page(found).write(run.path / "beliefs.html")
    print(table(found))
    print(f"\nreport: {run.path / 'beliefs.html'}")
    best = max((row for row in found["rows"] if row["features"] == "trained" and row["target"] == "beliefs"), key=lambda row: row["r2"])
    return {"checkpoint": found["checkpoint"], "best": best, "states_ceiling": found["ceiling"]}


class Study:
    """Sequences with their exact beliefs, and every probe on them."""

    def __init__(self, trained: Trained, cfg: BeliefsConfig) -> None:
        self.trained, self.cfg = trained, cfg
        total = cfg.fit_sequences + cfg.sequences
        self.tokens, states = trained.sampler.sample_with_latents("probe", 0, total, trained.seq_len)
        marginals = trained.filter.beliefs(self.tokens)
        latents = trained.kernels.graph.latents
        if not latents:
            raise ConfigError(f"{trained.path}: its graph has no latent node to have beliefs about; src.apps.gssm.positions works")
        self.names = [node.name for node in latents]
        self.ends = np.cumsum([node.state_dim for node in latents])
        one_hot = [np.eye(node.state_dim)[states[..., i]] for i, node in enumerate(latents)]
        self.targets = np.concatenate([*(marginals[name] for name in self.names), *one_hot], axis=-1).astype(np.float32)
        self.mean = self.targets[: cfg.fit_sequences].mean(axis=(0, 1))

    def run(self) -> dict[str, Any]:
        """Every row of the table, R2 by position of the most telling features, and the ceilings."""
        rows: list[dict[str, Any]] = []
        curves: dict[str, Any] = {}
        for features, layer, values, targets in self._features():
            for probe, predicted in self._probes(values, targets):
                target = targets[self.cfg.fit_sequences :]
                rows += [{"features": features, "layer": layer, "probe": probe, **row} for row in self._scores(target, predicted)]
                if probe == "linear" and features != "shuffled":
                    curves[features if layer is None else f"{features}/{layer}"] = self._by_position(target, predicted)
        best = max((row for row in rows if row["features"] == "trained" and row["probe"] == "linear"), key=_beliefs_r2)["layer"]
        shown = ["trained", "untrained", *(f"last {k}" for k in self.cfg.windows)]
        return {
            "checkpoint": str(self.trained.path),
            "graph_seed": self.trained.cfg.graph_seed,
            "latents": self.names,
            "layers": self.trained.cfg.model.nb_layers,
            "seq_len": self.trained.seq_len,
            "fit_sequences": self.cfg.fit_sequences,
            "sequences": self.cfg.sequences,
            "ceiling": self._ceiling(),
            "rows": rows,
            "best_layer": best,
            "r2_by_position": {name: curves[f"{name}/{best}" if f"{name}/{best}" in curves else name] for name in shown},
        }

    def _features(self) -> Iterator[tuple[str, int | None, torch.Tensor, Array]]:
        """Name, layer (0: the embedding), features (N, T, D) and the targets (N, T, K) to read from them."""
        import torch

        from .probes import window

        fit = self.cfg.fit_sequences
        for name, model in (("trained", self.trained.model), ("untrained", self.trained.untrained())):
            for layer, values in self._activations(model):
                yield name, layer, values, self.targets
                if name == "trained":
                    # the next sequence's targets: the same law at every position, and nothing to do with the features
                    yield "shuffled", layer, values, np.concatenate([np.roll(part, 1, axis=0) for part in np.split(self.targets, [fit])])
        for length in self.cfg.windows:
            codes = window(self.tokens, self.trained.kernels.graph.vocab_size, length)
            yield f"last {length}", None, torch.from_numpy(codes).to(self.trained.device), self.targets

    def _activations(self, model: Transformer) -> Iterator[tuple[int, torch.Tensor]]:
        """Residual stream after the embedding and after each block, (N, T, D)."""
        import torch

        from src.nanollama.model.probe import probe

        for layer, name in enumerate(["embed", *(f"layers.{i}" for i in range(len(model.layers)))]):
            parts = []
            with torch.no_grad(), probe(model, name) as seen:  # a pass for each layer: all layers together need not fit in memory
                for _, tokens in self.trained.batches(self.tokens, self.cfg.batch):
                    model(tokens)
                    parts.append(seen.activations[name].float())
            yield layer, torch.cat(parts)

    def _probes(self, values: torch.Tensor, targets: Array) -> Iterator[tuple[str, Array]]:
        """Each probe's predictions on the sequences that it was not fitted on, (sequences, T, K)."""
        import torch

        from .probes import fit_linear, fit_mlp

        fit = self.cfg.fit_sequences
        x, y = values[:fit].flatten(0, 1), torch.from_numpy(targets[:fit]).to(values.device).flatten(0, 1)
        linear = fit_linear(x, y, self.cfg.ridge)
        yield "linear", linear(values[fit:]).cpu().numpy()
        yield "mlp", fit_mlp(x, y, linear, self.cfg.hidden, self.cfg.epochs, self.cfg.seed)(values[fit:]).cpu().numpy()

    def _scores(self, target: Array, predicted: Array) -> Iterator[dict[str, Any]]:
        from .probes import score

        for kind, columns in self._columns():
            found = score(target[..., columns], predicted[..., columns], self.mean[columns])
            each = [score(target[..., c], predicted[..., c], self.mean[c]).r2 for c in self._latents(columns)]
            row = {"target": kind, "r2": found.r2, "r2_se": found.se, "r2_by_latent": dict(zip(self.names, each, strict=True))}
            if kind == "states":
                row["accuracy"] = self._accuracy(target, predicted, columns)
            yield row

    def _accuracy(self, target: Array, predicted: Array, columns: slice) -> float:
        """How often the likeliest state is the true one, averaged over latents."""
        hits = [(target[..., c].argmax(-1) == predicted[..., c].argmax(-1)).mean() for c in self._latents(columns)]
        return float(np.mean(hits))

    def _by_position(self, target: Array, predicted: Array) -> list[float]:
        from .probes import by_position

        columns = next(columns for kind, columns in self._columns() if kind == "beliefs")
        return by_position(target[..., columns], predicted[..., columns], self.mean[columns]).tolist()

    def _ceiling(self) -> dict[str, float]:
        """The exact filter's own score on the states: no probe of x_<=t can do better on average."""
        known = next(columns for _, columns in self._columns())
        held_out = self.targets[self.cfg.fit_sequences :]
        as_prediction = np.concatenate([held_out[..., known], held_out[..., known]], axis=-1)
        row = next(row for row in self._scores(held_out, as_prediction) if row["target"] == "states")
        return {"r2": row["r2"], "r2_se": row["r2_se"], "accuracy": row["accuracy"]}

    def _columns(self) -> Iterator[tuple[str, slice]]:
        width = int(self.ends[-1])
        yield "beliefs", slice(0, width)
        yield "states", slice(width, 2 * width)

    def _latents(self, columns: slice) -> Iterator[slice]:
        for low, high in zip([0, *self.ends[:-1]], self.ends, strict=True):
            yield slice(columns.start + int(low), columns.start + int(high))


def _beliefs_r2(row: dict[str, Any]) -> float:
    return row["r2"] if row["target"] == "beliefs" else -np.inf


def table(found: dict[str, Any]) -> str:
    """R2 of every probe for a terminal."""
    lines = [f"{'features':<12}{'layer':>6}{'probe':>8}{'R2 beliefs':>18}{'R2 states':>18}{'accuracy':>10}"]
    rows = found["rows"]
    for known, states in zip(rows[::2], rows[1::2], strict=True):
        numbers = "".join(f"{row['r2']:>10.4f} ± {row['r2_se']:.3f}" for row in (known, states))
        layer = "" if known["layer"] is None else known["layer"]
        lines.append(f"{known['features']:<12}{layer:>6}{known['probe']:>8}{numbers}{states['accuracy']:>10.3f}")
    top = found["ceiling"]
    exact = f"{1:>10.4f}        {top['r2']:>10.4f} ± {top['r2_se']:.3f}{top['accuracy']:>10.3f}"
    return "\n".join([*lines, f"{'exact filter':<26}{exact}"])


if __name__ == "__main__":
    beliefs()
