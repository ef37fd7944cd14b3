"""A dictionary that is learned while its model is: a TopK autoencoder on hidden states that come batch by batch.

With x the layer-normalised hidden states [positions, d_model] of an optimizer step and M their number, it minimises

    (1/M) Σ ‖x − x̂‖² + (1/M) Σ min(1, n_dead / k_aux) ‖(x − x̂) − ê‖²,

where ê decodes the k_aux = d_model / 2 largest pre-activations of the dead concepts (AuxK; Gao et al., 2024, as SAELens
has it) and the rows of W_dec are kept at length 1. b_dec is not learned: it is the mean of the states of the step
before. A young model's states have most of their length in common: were that left to the concepts, the same few would
soon be the most active ones at every position, and labels would say nothing.

Labels are not made by the autoencoder but by a copy that follows it slowly, an exponential moving average of its
weights, so that a concept goes on meaning what the student learned it to mean.

Nothing moves between the optimizer steps: `add` sums gradients up, `step` uses them. So the concepts of a batch depend
neither on how a step is split into micro-batches nor, if `step` adds them up, into processes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.concepts.dictionary import ConceptDictionary
from cocomix.concepts.dictionary_folder import FitSettings
from cocomix.runtime.errors import CoCoMixError

if TYPE_CHECKING:
    from cocomix.concepts.labellers.own_states import OnlineConfig

_AUX_SHARE = 2  # of the width of the hidden states, for k_aux (Gao et al., 2024)
_SLOWER = 5  # than `cocomix sae`, whose steps are fewer
_EARLY = 10  # steps; TensorFlow's ExponentialMovingAverage begins the same way
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


def learning_flops(d_model: int, num_concepts: int, active: int) -> float:
    """FLOPs of a `LearningDictionary` per position: the copy's encoder, and the autoencoder forward and backward.

    2dC each for both encoders and for the gradient of the weights of one; 2dn for decoding n concepts, twice that
    backwards, for the active ones and those that AuxK revives, as if there were always dead ones. Products alone.
    """
    decoded = active + _revived(d_model, num_concepts)
    return 6.0 * d_model * num_concepts + 6.0 * d_model * decoded


class LearningDictionary:
    """The autoencoder, its optimizer (Adam), the slow copy, and what was counted since the last log line.

    It reads the output of block `layer` (0-based). `copy` is the dictionary that makes labels, changed by `step`.
    """

    def __init__(self, d_model: int, config: "OnlineConfig", *, layer: int, device: torch.device) -> None:
        num_concepts, generator = config.num_concepts, torch.Generator().manual_seed(config.seed)
        rows = F.normalize(torch.randn(num_concepts, d_model, generator=generator), dim=-1)
        tensors = (rows.T.contiguous(), torch.zeros(num_concepts), rows, torch.zeros(d_model))
        values = [tensor.to(device) for tensor in tensors]
        self.weights = {name: value.clone() for name, value in zip(_WEIGHTS, values, strict=True)}
        self.copy = ConceptDictionary(
            *values, k=config.active, normalize="layer_norm", layer=layer, name="the student's own"
        )
        self.config = config
        self.k_aux = _revived(d_model, num_concepts)
        rate = config.learning_rate or FitSettings(num_concepts=num_concepts).peak_learning_rate / _SLOWER
        learned = [weight.requires_grad_(True) for name, weight in self.weights.items() if name != "b_dec"]
        self.optimizer = torch.optim.Adam(learned, lr=rate)
        for weight in learned:  # as Adam's first step would begin, so that the state has the same names from the start
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
        self.steps = torch.zeros((), dtype=torch.int64)
        self.idle = torch.zeros(num_concepts, dtype=torch.int64, device=device)
        self._step = self._zeros()
        self._logged = self._zeros()
        self._pending = False

    @property
    def moves(self) -> float:
        """How far a copy moves in the next step: 1 − decay, more in the beginning, when what it began with is noise."""
        steps = int(self.steps)
        return 1 - min(self.config.ema, (1 + steps) / (_EARLY + steps))

    def add(self, states: Tensor, labels: Tensor) -> None:
        """Add a micro-batch to the next step: its gradients, and what is counted.

        Of layer-normalised states [positions, d_model], float32, and the ids of their labels, int64 [labels].
        """
        self._pending = True
        states, dead = states.detach(), self.idle >= self.config.dead_after_tokens
        with torch.enable_grad():
            pre = (states - self.weights["b_dec"]) @ self.weights["W_enc"] + self.weights["b_enc"]
            values, ids = pre.topk(self.config.active, dim=-1)
            error = states - self._decode(ids, values) - self.weights["b_dec"]
            loss = squared = error.square().sum()
            if bool(dead.any()):
                k = min(self.k_aux, int(dead.sum()))
                values_aux, ids_aux = pre.masked_fill(~dead, -torch.inf).topk(k, dim=-1)
                missed = error.detach() - self._decode(ids_aux, values_aux)
                loss = squared + missed.square().sum() * (k / self.k_aux)
            loss.backward()  # type: ignore[no-untyped-call]
        n_concepts = len(self.idle)
        found = {
            "positions": torch.tensor(len(states), device=states.device),
            "error": squared.detach().double(),
            "squares": states.double().square().sum(),
            "states": states.double().sum(dim=0),
            "used": torch.bincount(ids[values > 0], minlength=n_concepts),
            "labels": torch.bincount(labels, minlength=n_concepts),
        }
        self._step = {name: self._step[name] + value for name, value in found.items()}

    @torch.no_grad()
    def step(self, reduce: Callable[[Tensor], Tensor]) -> bool:
        """One step on what was added, which `reduce` adds up over all processes; returns False where nothing was."""
        if not self._pending:
            return False
        counted = {name: reduce(value) for name, value in self._step.items()}
        if not bool(counted["error"].isfinite()):
            raise CoCoMixError(
                "the loss of the dictionary of the student's states is not finite; lower labels.learning_rate "
                f"({self.optimizer.param_groups[0]['lr']:g})."
            )
        positions = counted["positions"].clamp_min(1)
        for weight in self.weights.values():
            if weight.grad is not None:
                weight.grad = reduce(weight.grad) / positions
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights["W_dec"].copy_(F.normalize(self.weights["W_dec"], dim=-1))
        self.weights["b_dec"].copy_(counted["states"] / positions)
        for name, slow in self.copy.tensors().items():
            slow.lerp_(self.weights[name], self.moves)
        self.steps += 1
        self.idle = (self.idle + counted["positions"]).masked_fill(counted["used"] > 0, 0)
        self._logged = {name: self._logged[name] + value for name, value in counted.items()}
        self._step, self._pending = self._zeros(), False
        return True

    def numbers(self) -> dict[str, float]:
        """What is logged of the steps since the last call, and count anew; nothing if there were none.

        `label_entropy` of a label drawn at random, nats; `label_concepts`, how many concepts were labels;
        `dead_concepts`; `dictionary_fvu`, the fraction of the states' variance that the autoencoder leaves.
        """
        found, self._logged = self._logged, self._zeros()
        positions, labels = int(found["positions"]), found["labels"].double()
        if positions == 0:
            return {}
        variance = found["squares"] - found["states"].square().sum() / positions
        return {
            "label_entropy": float(torch.special.entr(labels / labels.sum().clamp_min(1)).sum()),
            "label_concepts": float((labels > 0).sum()),
            "dead_concepts": float((self.idle >= self.config.dead_after_tokens).sum()),
            "dictionary_fvu": float(found["error"] / variance.clamp_min(1e-12)),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, between two steps, by name; to go on from it, it is copied back."""
        moments = self.optimizer.state_dict()["state"]
        found = {f"weights.{name}": weight.detach() for name, weight in self.weights.items()}
        found |= {f"copy.{name}": tensor for name, tensor in self.copy.tensors().items()}
        found |= {f"adam.{place}.{name}": moment for place in moments for name, moment in moments[place].items()}
        found |= {"idle": self.idle, "steps": self.steps}
        return found | {f"logged.{name}": value for name, value in self._logged.items()}

    def _decode(self, ids: Tensor, values: Tensor) -> Tensor:
        """Σ relu(value) · W_dec[id], [positions, d_model] from [positions, k] each."""
        return F.embedding_bag(ids, self.weights["W_dec"], per_sample_weights=values.relu(), mode="sum")

    def _zeros(self) -> dict[str, Tensor]:
        n_concepts, d_model = self.weights["W_dec"].shape
        shapes = {"error": (), "squares": (), "states": (d_model,)}
        counts = {"positions": (), "used": (n_concepts,), "labels": (n_concepts,)}
        device = self.weights["W_dec"].device
        exact = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        return exact | {name: torch.zeros(shape, dtype=torch.int64, device=device) for name, shape in counts.items()}


def _revived(d_model: int, num_concepts: int) -> int:
    """Dead concepts that the auxiliary loss revives at a position, at most."""
    return min(max(1, d_model // _AUX_SHARE), num_concepts)
