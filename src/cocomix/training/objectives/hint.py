"""Hint (arXiv 2605.11513): early in training, the student's middle state predicts that of a teacher.

L = (1/N) Σ_t mean_i (norm(A r_t) − norm(h_t))_i², where r_t is the residual stream after half of the student's blocks,
h_t the teacher's state after its block `layer`, A a projection that is left out of the finished model, and norm takes
mean and scale away. Only in the first 5% of training; the teacher runs no longer than that.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from cocomix.concepts import FrozenDecoder, TeacherConfig
from cocomix.data import Tokens
from cocomix.labelling import open_decoder
from cocomix.training.objectives.ahead import states_after
from cocomix.training.objectives.objective import Batch, Schedule, SingleTerm

_EARLY = Schedule(shape="stop", value=1.0, until=0.05)


class Hint(SingleTerm):
    """Mean squared error between normalised middle states.

    Args:
        teacher: of the data's tokenizer, and its middle block.
    """

    name = "hint"
    reads_states = True

    def __init__(self, weight: Schedule = _EARLY, *, teacher: TeacherConfig) -> None:
        super().__init__(weight)
        self.teacher = teacher
        self.decoder: FrozenDecoder | None = None

    def prepare(self, data: Tokens, model: PreTrainedModel) -> None:
        """Load the teacher; raises as `open_decoder`."""
        self.decoder = open_decoder(data, self.teacher)
        self.teacher_flops = self.decoder.flops_per_token(data.manifest.block_size, up_to="layer")

    def summed(self, output: Any, batch: Batch, head: Any) -> Tensor:
        """`hint_loss`, no nats."""
        assert self.decoder is not None  # see `prepare`
        taught = self.decoder.hidden_states(batch["input_ids"], batch.get("attention_mask")).float()
        config = self.model.config
        middle = head(states_after(output, config, config.num_hidden_layers // 2)).float()
        ours, theirs = (F.layer_norm(states, states.shape[-1:]) for states in (middle, taught))
        far = F.mse_loss(ours, theirs, reduction="none").mean(-1)
        return (far * self.counted(batch)).sum()

    def build_head(self, config: PreTrainedConfig) -> nn.Module:
        """A, d·d_teacher parameters."""
        return nn.Linear(config.hidden_size, self._width(config), bias=False)

    def _width(self, config: PreTrainedConfig) -> int:
        """d_teacher; before it is loaded, for a plan, as its folder says, or the student's where there is none yet."""
        if self.decoder is not None:
            return self.decoder.d_model
        there = (Path(self.teacher.model) / "config.json").is_file()
        teacher = AutoConfig.from_pretrained(self.teacher.model, trust_remote_code=False) if there else config
        return int(teacher.get_text_config().hidden_size)
