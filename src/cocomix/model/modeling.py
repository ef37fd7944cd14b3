"""`CoCoMixForCausalLM`: two stock decoders, and between them a prediction and a form of mixing.

Dimension names used in this room: batch, seq (tokens), mixed_seq (= 2·seq where concepts are interleaved, else seq),
d_model, n_concepts (C), k (concept_topk), k_attr (labels per position).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, GenerationMixin, PreTrainedModel
from transformers.utils import can_return_tuple

from cocomix.model.backbone import backbone_of, blocks_of, build_halves, check_loaded_decoder, positions_of
from cocomix.model.bigram import BigramTable
from cocomix.model.cache import CoCoMixCache, NothingCached
from cocomix.model.configuration import CoCoMixConfig
from cocomix.model.edits import ConceptEdit, ConceptIntervention, PlacedEdit, active_edits, check_edits, place_edits
from cocomix.model.fused_head import Head, loss_sums
from cocomix.model.mixing import Concepts, Layout
from cocomix.model.mixing.form import ConceptCompression, HiddenCompression
from cocomix.model.mixing.without_concepts import Pause
from cocomix.model.output import CoCoMixOutput
from cocomix.model.predictor import ConceptPredictor, HiddenPredictor, Prediction
from cocomix.model.targets import HeadLoss, SetCrossEntropy, check_concept_labels, divisor, next_tokens, unpadded
from cocomix.runtime.errors import CoCoMixError
from cocomix.runtime.ignore import IGNORE

_COMPRESSION_SCALES = {"normal": 1.0, "small": 0.1, "zero": 0.0}


class CoCoMixForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A language model that predicts concepts half-way up and reads the next token at their mixture (method: 3–5)."""

    config_class = CoCoMixConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - transformers reads this class attribute

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        width, own, kernel = config.positions_per_token, config.upper_positions == "own", config._attn_implementation
        self.lower, self.upper = build_halves(config.backbone, config.insert_layer, width, kernel, own_positions=own)
        predictor = ConceptPredictor if config.prediction == "concepts" else HiddenPredictor
        self.predictor = predictor(config) if config.form.predicts else None
        self.mixing = config.form(config)
        self.mixing.attach(self.lower, self.upper)
        self.bigram: BigramTable | None = None
        if config.bigram_rows is not None:
            blocks = (*blocks_of(self.lower), *blocks_of(self.upper))
            self.bigram = BigramTable(config.bigram_rows, config.hidden_size, blocks)
        self._logit_softcap: float | None = config.final_logit_softcapping
        self.lm_head: nn.Module = self._head(config.vocab_size)
        embedding = f"lower.{backbone_of(config.backbone).token_embedding}.weight"
        self._tied_weights_keys = {"lm_head.weight": embedding}
        # What is sharded or moved as one: these, and the blocks, which the halves add.
        heads = (self.predictor, getattr(self.mixing, "compression", None), self.bigram)
        self._no_split_modules = [type(module).__name__ for module in heads if module is not None]
        self.post_init()

    def _sdpa_can_dispatch(self, is_init_check: bool = False) -> bool:
        """Whether PyTorch's attention kernel serves the backbone, as its own class says; where not, eager does.

        Raises:
            CoCoMixError: it does not. Transformers asks here, and passes the error on if that kernel was asked for.
        """
        backbone_of(self.config.backbone)
        if MODEL_MAPPING[type(self.config.backbone)]._supports_sdpa:
            return True
        raise CoCoMixError(
            f"a {self.config.backbone.model_type} backbone does not work with attn_implementation='sdpa', which cannot "
            "cap attention scores; leave it out for 'eager', or use 'flex_attention'."
        )

    def _init_weights(self, module: nn.Module) -> None:
        """New layers and the head start like the backbone's linear layers: N(0, initializer_range), zero biases."""
        std = self.config.backbone.initializer_range
        if isinstance(module, nn.Linear | ConceptCompression):
            if isinstance(module, HiddenCompression | ConceptCompression):
                std *= _COMPRESSION_SCALES[self.config.compression_init]
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ConceptPredictor | HiddenPredictor):
            nn.init.zeros_(module.pre_bias)
            reduction = getattr(module, "reduction", None)  # keeps lengths, so that logits are as large as without one
            if reduction is not None:
                nn.init.normal_(reduction.weight, std=reduction.out_features**-0.5)
        elif isinstance(module, Pause):
            nn.init.normal_(module.pause, mean=0.0, std=std)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load saved weights, as `PreTrainedModel.from_pretrained` does; what they lack beside the decoder starts anew.

        Raises:
            CoCoMixError: the decoder's weights are not those of the configuration, whose blocks would be new or lost.
        """
        source = pretrained_model_name_or_path
        model, loading = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        check_loaded_decoder(model.config, loading["missing_keys"], loading["unexpected_keys"], source)
        if loading["missing_keys"]:  # of these transformers starts only what `_init_weights` knows
            fresh = cls(model.config).state_dict()
            new = {name: value for name, value in fresh.items() if name in loading["missing_keys"]}
            model.load_state_dict(new, strict=False)
        return (model, loading) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the lower half."""
        embedding: nn.Module = self.lower.get_input_embeddings()
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the lower half."""
        self.lower.set_input_embeddings(value)

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the language-model head; a plain layer (from `resize_token_embeddings`) becomes a `Head`."""
        head: nn.Module = value
        if type(value) is nn.Linear:
            head = self._head(value.out_features)
            head.weight = value.weight
        self.lm_head = head

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Give the form's tables, too, as many rows as the token embedding gets (`resize_token_embeddings`)."""
        embedding: nn.Embedding = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        for table in self.mixing.token_tables():
            self._get_resized_embeddings(table, embedding.num_embeddings, mean_resizing=mean_resizing)
        return embedding

    def _get_resized_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resized in place by the lower half, which knows how its family initialises new rows."""
        resized: nn.Embedding = self.lower._get_resized_embeddings(*args, **kwargs)
        return resized

    def _head(self, vocab_size: int) -> Head:
        size, softcap = self.config.head_chunk_size, self._logit_softcap
        return Head(self.config.hidden_size, vocab_size, bias=False, chunk_size=size, softcap=softcap)

    @property
    def compression_weight(self) -> Tensor:
        """W_comp, one row per concept, of a model that mixes concepts in. [n_concepts, d_model]"""
        assert isinstance(self.mixing.compression, ConceptCompression)
        weight: Tensor = self.mixing.compression.weight
        return weight

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,  # [batch, seq]
        attention_mask: Tensor | None = None,  # [batch, past + seq]
        position_ids: Tensor | None = None,  # [batch, seq]
        past_key_values: CoCoMixCache | None = None,
        inputs_embeds: Tensor | None = None,  # [batch, seq, d_model]
        labels: Tensor | None = None,  # [batch, seq]
        concept_labels: Tensor | None = None,  # [batch, seq, k_attr]
        hidden_targets: Tensor | None = None,  # [batch, seq, d_teacher]
        head_losses: Mapping[str, HeadLoss] | None = None,
        head_weights: Mapping[str, Tensor] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_logits: bool = True,
        output_concept_logits: bool = False,
        concept_edits: Sequence[ConceptEdit] | None = None,
        edit_rows: Tensor | None = None,  # [batch]
        concept_intervention: ConceptIntervention | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_concept_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CoCoMixOutput:
        """Run the model.

        Args:
            input_ids: tokens.
            attention_mask: 1 for tokens, 0 for padding, two-dimensional; covers cached tokens too.
            position_ids: positions; by default counted over unpadded tokens, so that padding changes nothing.
            past_key_values: cache of an earlier call.
            inputs_embeds: embeddings in place of `input_ids`.
            labels: the same tokens as `input_ids` (shifted inside), −100 where a token is no target. The first token
                after left padding is none either: nothing stands before it.
            concept_labels: concepts per position, −100 for unused entries, not shifted.
            hidden_targets: the teacher's layer-normed hidden states, for `prediction="hidden"`; with `labels`, whose
                targets say which positions count.
            head_losses: further losses of the next-token logits by name, of flat positions [batch·seq, …].
            head_weights: of `ntp_loss` and the sums of `head_losses` in the loss that is differentiated, [] each. With
                them one pass over the logits finds all, and gradients are right for that combination alone.
            use_cache: return a cache; by default what the configuration says, and only where nothing is trained.
            logits_to_keep: compute logits of the last n positions only (0 = all), or of the given positions; losses are
                of all positions nevertheless.
            output_logits: return next-token logits. `False` computes the loss without ever holding [batch·seq, vocab].
            output_concept_logits: also return all C concept logits.
            concept_edits: changes to concept logits before top-k (steering), after those in force around this call.
            edit_rows: which row, in the edits' counting, each row of the batch counts as; by default its own index.
                `generate` gives every beam and repeated sample the row of its prompt.
            concept_intervention: replaces the concepts that are mixed in (reliance measurements).
            num_items_in_batch: divisor of the losses: the target tokens of all micro-batches and processes of a step,
                which the stock Trainer passes; by default those here.
            num_concept_items_in_batch: divisor of the concept loss, likewise: labelled positions; by default
                `num_items_in_batch` if given (λ then weighs an average over all targets), else those here.
            **kwargs: forwarded to both halves (for example `output_hidden_states=True`).

        Raises:
            CoCoMixError: a label or an edit names what does not exist; labels have another shape; there are more tokens
                than learned positions; concepts are asked of a model without; the cache is of another kind.
        """
        asked = {
            "concept_labels": concept_labels is not None,
            "concept_edits": bool(concept_edits),
            "concept_intervention": concept_intervention is not None,
            "output_concept_logits": output_concept_logits,
        }
        self._check_concepts([name for name, given in asked.items() if given])
        has_concepts = self.config.has_concepts  # rather than the predictor's class: it may be wrapped
        if hidden_targets is not None and (has_concepts or self.predictor is None):
            raise CoCoMixError("hidden_targets cannot be used with this model, which predicts no hidden states.")
        if labels is None and hidden_targets is not None:
            raise CoCoMixError("hidden_targets count where labels have a target; pass labels too.")
        if use_cache is None:
            asked_for = self.config.use_cache and not self.training and labels is None
            use_cache = past_key_values is not None or asked_for
        cache = self._own_cache(past_key_values) if use_cache else None
        query = input_ids if input_ids is not None else inputs_embeds
        if concept_labels is not None:
            check_concept_labels(concept_labels, query, self.config.num_concepts)
            concept_labels = unpadded(concept_labels, attention_mask)
        past = 0 if cache is None else cache.get_seq_length()
        position_ids = positions_of(query, attention_mask, position_ids, past, self.config.backbone)
        edits = self._placed_edits(concept_edits, edit_rows, query, position_ids)
        if input_ids is None and (setting := self.config.looks_up) is not None:
            raise CoCoMixError(f"{setting} looks tokens up; pass input_ids in the place of inputs_embeds.")
        kept = () if cache is None else cache.kept
        if self.bigram is not None:
            self.bigram(input_ids, position_ids, kept[-1] if kept else None)
        # Checkpointed blocks take no cache of any kind.
        plain = position_ids is None and attention_mask is None and not self.upper.gradient_checkpointing
        nothing = NothingCached() if plain else None

        lower = self.lower(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask if self.config.insert_layer > 0 else None,
            position_ids=position_ids,
            past_key_values=nothing if cache is None else cache.lower,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = lower.last_hidden_state
        targets = None if labels is None else next_tokens(labels, attention_mask).to(hidden.device)  # [batch, seq]
        counted = None if targets is None else targets.ne(IGNORE)
        prediction: Prediction | None = None
        if self.predictor is not None and has_concepts:
            prediction = self.predictor(hidden, concept_labels, edits=edits, output_logits=output_concept_logits)
        elif self.predictor is not None:
            prediction = self.predictor(hidden, hidden_targets, counted)
        concepts: Concepts | None = None if prediction is None else prediction.concepts
        if concept_intervention is not None and concepts is not None and concepts.ids is not None:
            ids, values = concept_intervention(concepts.ids, concepts.values)
            concepts = concepts._replace(ids=ids, values=values)
        own = kept[0] if kept and self.config.form.keeps else None
        layout = Layout(position_ids, attention_mask, own, None if labels is None else {}, input_ids)

        def run(mixed: Tensor, number: int) -> Any:  # a pass of the upper half
            above = nothing if cache is None else cache.upper[number]
            width = self.config.passes[number]
            positions, mask = self.mixing.expand(hidden, position_ids, attention_mask, above is not None, width)
            inputs = {"inputs_embeds": mixed, "attention_mask": mask, "position_ids": positions}
            return self.upper(**inputs, past_key_values=above, use_cache=use_cache, **kwargs)

        upper = self.mixing.through(self.mixing(hidden, concepts, layout), run)
        read = self.mixing.readout(upper.last_hidden_state)  # [batch, seq, d_model]
        if self.bigram is not None:
            self.bigram.forget()
        logits = self._logits(read, logits_to_keep) if output_logits else None
        whole = logits if isinstance(logits_to_keep, int) and logits_to_keep == 0 else None  # what losses can take
        ntp_loss = concept_loss = hidden_loss = None
        losses, weights = dict(head_losses or {}), head_weights
        if targets is not None and counted is not None:
            items = divisor(counted, num_items_in_batch)
            losses["ntp_loss"] = SetCrossEntropy(targets.reshape(-1, 1))
            weights = None if weights is None else {**weights, "ntp_loss": weights["ntp_loss"] / items}
        sums = loss_sums(self.lm_head, read, whole, losses, weights)
        if targets is not None:
            ntp_loss = sums.pop("ntp_loss") / items
            if hidden_targets is not None and prediction is not None and prediction.loss_sum is not None:
                hidden_loss = prediction.loss_sum / items
        if concept_labels is not None and prediction is not None and prediction.loss_sum is not None:
            given = num_items_in_batch if num_concept_items_in_batch is None else num_concept_items_in_batch
            concept_loss = prediction.loss_sum / divisor(concept_labels.ne(IGNORE).any(-1), given)
        auxiliary = hidden_loss if concept_loss is None else concept_loss
        terms = [] if auxiliary is None else [self.config.concept_loss_weight * auxiliary]
        terms = terms if ntp_loss is None else [ntp_loss, *terms]
        return CoCoMixOutput(
            loss=sum(terms[1:], terms[0]) if terms else None,  # Eq. 4, or whichever of its terms is there
            ntp_loss=ntp_loss,
            concept_loss=concept_loss,
            hidden_loss=hidden_loss,
            head_losses=sums or None,
            logits=logits,
            concept_logits=None if prediction is None else prediction.logits,
            concept_ids=None if concepts is None else concepts.ids,
            concept_values=None if concepts is None or concepts.ids is None else concepts.values,
            shown=layout.shown or None,
            last_hidden_state=read,
            past_key_values=cache,
            hidden_states=_joined(lower.hidden_states, upper.hidden_states),
            attentions=_joined(lower.attentions, upper.attentions),
        )

    def _check_concepts(self, asked: Sequence[str]) -> None:
        if asked and not self.config.has_concepts:
            raise CoCoMixError(
                f"{' and '.join(asked)} cannot be used with this model, which has no concepts "
                f"(mixing: {self.config.mixing}, prediction: {self.config.prediction})."
            )

    def _placed_edits(
        self,
        edits: Sequence[ConceptEdit] | None,
        rows: Tensor | None,
        query: Tensor | None,  # [batch, seq, …]
        positions: Tensor | None,
    ) -> list[PlacedEdit]:
        """The edits in force and those of this call, where they apply."""
        together = (*active_edits(self), *(edits or ()))
        if not together or query is None:
            return []
        self._check_concepts(["concept_edits"])
        check_edits(together, self.config.num_concepts)
        batch, seq = query.shape[:2]
        positions = torch.arange(seq, device=query.device).unsqueeze(0) if positions is None else positions
        rows = torch.arange(batch, device=query.device) if rows is None else rows
        return place_edits(together, positions, rows)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Repeat each prompt for its beams or samples, and note which prompt a row belongs to, for edits of rows."""
        if expand_size > 1 and input_ids is not None and kwargs.get("edit_rows") is None:
            kwargs["edit_rows"] = torch.arange(len(input_ids), device=input_ids.device)
        return super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)

    def _logits(self, hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep > 0:
            hidden = hidden[:, -logits_to_keep:]
        logits: Tensor = self.lm_head(hidden)
        if self._logit_softcap is not None:
            logits = torch.tanh(logits / self._logit_softcap) * self._logit_softcap
        return logits

    def _own_cache(self, cache: Any) -> CoCoMixCache:
        config = self.config
        return CoCoMixCache(self.lower.config, self.upper.config, config.passes, config.keeps).unless(cache)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` the cache of both halves; other cache kinds are refused."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise CoCoMixError(
                f"cache_implementation={kind!r} does not work with CoCoMix, whose upper half holds two entries per "
                "token; leave it out to use the growing cache, or pass use_cache=False."
            )
        if generation_config.use_cache is False and model_kwargs.get("past_key_values") is None:
            return
        model_kwargs["past_key_values"] = self._own_cache(model_kwargs.get("past_key_values"))
        if generation_config.is_assistant:
            model_kwargs["past_key_values"].activate_past_recording()


def predicts_concepts(model: nn.Module) -> TypeGuard[CoCoMixForCausalLM]:
    """Whether a model has concepts to look at: not with a pause vector or predicted hidden states."""
    return isinstance(model, CoCoMixForCausalLM) and model.config.has_concepts


def _joined(lower: tuple[Tensor, ...] | None, upper: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    return None if lower is None or upper is None else (*lower, *upper)
