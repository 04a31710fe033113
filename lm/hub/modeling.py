"""The Compressive Transformer as a causal language model of transformers.

Shapes: B lanes, L columns of input, of which attention_mask names those that are tokens, t tokens.
Padding may stand anywhere: it is left out before the model reads, so it never enters memory. The
pad token is the id behind the last of the vocabulary; the model knows no vector for it.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm.hub.backbone import Backbone, TextRead, check_options, read_layers
from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.generation import MemoryGeneration
from lm.hub.padding import check_ids, check_positions, compacted, mean_loss, real_columns, spread
from lm.hub.weights import check_hashes, forget_hashes, open_weights
from lm.model.components import Head
from lm.model.incremental import Reader
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Term, add_terms, total_loss

PART = 4096
"""Tokens of each lane whose hidden states are held at once where only the last ones are wanted."""


class CompressiveTransformerForCausalLM(PreTrainedModel, MemoryGeneration, GenerationMixin):
    """A Compressive Transformer that predicts the next token.

    In training every call begins with empty memory and reads its input segment by segment; the loss
    is the mean likelihood of the labels plus the mean of each auxiliary loss, such as that which
    trains compression. In evaluation a cache carries memory from call to call.
    """

    config_class = CompressiveTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = {"CompressiveTransformer"}  # noqa: RUF012

    def __init__(self, config: CompressiveTransformerConfig) -> None:
        super().__init__(config)
        sizes = config.sizes()
        self.model = CompressiveTransformer(sizes, config.vocab_size)
        self.gradient_checkpointing = False
        self._tied_weights_keys = tied_weights(self.model)
        self.post_init()
        self.generation_config.pad_token_id = config.vocab_size

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, CompressiveTransformer):
            module.initialise()

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token embedding."""
        return self.model.embedding

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """The head, with its weight [V, D] and bias, or None where it has several (adaptive)."""
        head = self.model.head
        return head if isinstance(head, Head) else None

    @property
    def base_model(self) -> Backbone:
        """What makes hidden states of a text, for programs that call the head themselves."""
        return Backbone(self)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers, but only of safetensors, and whole.

        Raises:
            ValueError: a weight has changed since the export, is missing, belongs to another model
                or has another size, which transformers itself would pass over or make up.
        """
        # AutoModel itself says where an adapter would come from, whether or not there is one.
        adapter = {**(kwargs.get("adapter_kwargs") or {})}
        foreign = adapter.keys() - {"revision", "token", "_commit_hash", "subfolder"}
        kwargs["adapter_kwargs"] = {name: adapter[name] for name in foreign}
        for name in ("quantization_config", "use_kernels", "adapter_kwargs"):
            if kwargs.get(name):
                raise ValueError(f"{name} is not known here; leave it out")
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if place is not None:
            check_hashes(place)
        wanted = kwargs.pop("output_loading_info", False)
        # Sizes are complained of below, by name.
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, found = loaded
        for kind, what in (
            ("missing_keys", "is missing"),
            ("unexpected_keys", "belongs to another model"),
            ("mismatched_keys", "has another size"),
        ):
            # Of those of another size the sizes are told too.
            names = [each if isinstance(each, str) else each[0] for each in found[kind]]
            if names:
                raise ValueError(
                    f"the weights in {args[0] if args else 'the folder'} do not fit config.json: "
                    f"{min(names)} {what}; take all files of one export"
                )
        return (model, found) if wanted else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As everywhere in transformers, with the permissions of the umask; what an export listed
        there does not count any more.
        """
        forget_hashes(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)
        open_weights(save_directory)

    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, *_: Any, **__: Any
    ) -> torch.nn.Module:
        """Nothing where the number stays, counting <pad> or not; ValueError for another one."""
        size = self.config.vocab_size
        if new_num_tokens not in (None, size, size + 1):
            raise ValueError(
                f"the vocabulary has {size} tokens, <pad> not counted, and its tokenizer gives no "
                f"others; do not make {new_num_tokens} of them"
            )
        return self.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CompressiveCache | None = None,
        cache: CompressiveCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Read tokens after what a cache has read; returns a CausalLMOutputWithPast.

        Args:
            input_ids: [B, L].
            attention_mask: [B, L] or [B, columns seen + L], 0 for padding; none: every pad token is
                padding.
            past_key_values: what was read before; it is moved on in place.
            cache: the same, by the name it has since transformers 5.24.
            labels: [B, L], the input_ids again where they are to be predicted, else -100; those of
                padding and of each lane's first token do not count.
            use_cache: return memory; none: in evaluation without gradients.
            logits_to_keep: of so many last columns logits are returned, or of those of these
                numbers; 0: of all.
            kwargs: num_items_in_batch, by which the loss is divided instead of the labels' number;
                position_ids that follow from the tokens; return_dict false: a tuple is returned.

        Raises:
            ValueError: a token outside the vocabulary, a cache in training, or what it cannot do.
        """
        check_options(kwargs)
        self._check_labels(labels, use_cache, logits_to_keep)
        cache = past_key_values if cache is None else cache
        last = isinstance(logits_to_keep, int) and logits_to_keep == 1
        read = self.read_texts(input_ids, attention_mask, cache, use_cache, last, kwargs)
        hidden = read.hidden_BLD
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.model.head(hidden)
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = mean_loss(logits, labels, read.real_BL, read.auxiliary, items)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=read.layers,
            **{CACHE: read.cache},  # type: ignore[arg-type]
        )
        return output.to_tuple() if kwargs.get("return_dict") is False else output

    def read_texts(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: CompressiveCache | None,
        use_cache: bool | None,
        last: bool,
        options: dict[str, Any],
    ) -> TextRead:
        """Read tokens after what a cache has read, without the head; see `forward`.

        Args:
            input_ids: [B, L].
            attention_mask: see `forward`.
            cache: what was read before.
            use_cache: see `forward`.
            last: whether the last column's final hidden states are enough.
            options: position_ids and output_hidden_states.
        """
        if input_ids is None:
            raise ValueError("text comes in as input_ids; inputs_embeds are not read")
        if cache is not None:
            self.check_cache(cache, len(input_ids))
        real = self._real(input_ids, attention_mask, 0 if cache is None else cache.columns)
        if options.get("position_ids") is not None:
            check_positions(options["position_ids"], real)
        every = options.get("output_hidden_states")
        every = bool(self.config.output_hidden_states if every is None else every)
        if every and (use_cache or cache is not None):
            raise ValueError(
                "hidden states of every layer come of whole texts: leave out the cache and "
                "use_cache, or output_hidden_states"
            )
        if use_cache is None:
            use_cache = cache is not None or not (torch.is_grad_enabled() or every)
            use_cache = use_cache and not self.training
        if use_cache:
            cache = CompressiveCache() if cache is None else cache
            hidden = self._read(input_ids, real, cache, last)
            return TextRead(hidden, None, real, hidden.new_zeros(()), cache)
        if cache is not None:
            raise ValueError(
                "a cache is read in evaluation only, and not with use_cache False: call "
                "model.eval(), or leave the cache out"
            )
        hidden, auxiliary = self._segments(input_ids, real, every)
        layers = hidden.split(self.config.width, dim=-1) if every else None
        return TextRead(layers[-1] if layers else hidden, layers, real, auxiliary, None)

    def _check_labels(
        self, labels: Tensor | None, use_cache: bool | None, logits_to_keep: int | Tensor
    ) -> None:
        """ValueError where a loss could not be computed, or would train nothing."""
        whole = not isinstance(logits_to_keep, Tensor) and logits_to_keep == 0
        if isinstance(logits_to_keep, int) and logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must be at least 0, not {logits_to_keep}")
        if labels is None:
            return
        if not whole:
            raise ValueError("labels need the logits of every column; leave out logits_to_keep")
        if use_cache and not self.training and torch.is_grad_enabled():
            raise ValueError(
                "no gradient passes through a cache: give labels with use_cache=False, or within "
                "torch.no_grad()"
            )

    def _real(self, input_ids: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
        """[B, L] bool: which columns hold tokens."""
        places = {*getattr(self, "hf_device_map", {}).values()}
        if len(places) > 1 or "disk" in places:
            raise ValueError(
                "memory wants the whole model on one device; load it with a device_map of one, "
                'such as {"": 0}'
            )
        real = real_columns(input_ids, attention_mask, seen, self.config.vocab_size)
        check_ids("input_ids", input_ids[real], self.config.vocab_size)
        return real

    def _read(self, input_ids: Tensor, real: Tensor, cache: CompressiveCache, last: bool) -> Tensor:
        """Final hidden states [B, L, D], or of the last column, without gradient; memory moves on.

        For the last column alone a whole book takes no more memory than a part of it.
        """
        if self.training:
            raise ValueError("a cache is read in evaluation only; call model.eval()")
        if cache.reader is None:
            cache.reader = Reader(self.model, self.model.empty_memory(len(input_ids)))
        cache.saw(input_ids)
        tokens, counts, column = compacted(input_ids, real)
        if not last:
            return spread(cache.reader.read(tokens, counts), column)
        for first in range(0, tokens.shape[1], PART):
            taken = [min(max(count - first, 0), PART) for count in counts]
            cache.reader.read(tokens[:, first : first + PART], taken)
        return cache.reader.last_BD[:, None]

    def _segments(
        self, input_ids: Tensor, real: Tensor, every: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, L, D] of whole texts, or those of every layer side by side, and
        the auxiliary losses' means.

        A lane reads as many segments as it has. The last, which it may not fill, moves no memory
        and has no part in the losses of compression, as if the text went on.
        """
        model, segment = self.model, self.config.segment
        tokens, counts, column = compacted(input_ids, real)
        tokens = F.pad(tokens, (0, -tokens.shape[1] % segment))
        read: Any = partial(read_layers, model) if every else model.read_segment
        if self.gradient_checkpointing and self.training:
            read = partial(self._gradient_checkpointing_func, read)
        lanes, hidden = list(range(len(tokens))), []
        memory = model.empty_memory(len(tokens))
        sums: dict[str, Term] = {}
        for at, part in enumerate(tokens.split(segment, dim=1)):
            whole = [lane for lane in lanes if counts[lane] >= (at + 1) * segment]
            rest = [lane for lane in lanes if at * segment < counts[lane] < (at + 1) * segment]
            states, before = None, memory
            for some in filter(None, (whole, rest)):
                rows = torch.tensor([lanes.index(lane) for lane in some], device=part.device)
                new, after, losses, _ = read(part[some], before.lane_slice(rows), self.training)
                states = new.new_zeros(len(part), *new.shape[1:]) if states is None else states
                states = states.index_copy(0, torch.tensor(some, device=part.device), new)
                memory = after if some is whole else memory
                # What does not count is there all the same: every weight has a gradient.
                counted = int(some is whole)
                terms = {
                    n: Term(counted * loss.total, counted * loss.elements)
                    for n, loss in losses.items()
                }
                add_terms(sums, terms)
            if states is not None:
                hidden.append(states)
            lanes = whole
        if not hidden:
            width = self.config.width * (self.config.layers + 1 if every else 1)
            nothing = model.embedding.weight.new_zeros(*real.shape, width)
            return nothing, nothing.new_zeros(())
        auxiliary = total_loss(sums) if sums else hidden[0].new_zeros(())
        return spread(torch.cat(hidden, dim=1), column), auxiliary


class CompressiveTransformerModel(CompressiveTransformerForCausalLM):
    """The same with hidden states for logits, as AutoModel loads it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See Backbone.forward."""
        return Backbone(self)(*args, **kwargs)

    def generate(self, *_: Any, **__: Any) -> Any:
        """ValueError: there is no head to write with."""
        raise ValueError("AutoModel has no head to write with; load AutoModelForCausalLM instead")


def tied_weights(model: CompressiveTransformer) -> dict[str, str]:
    """Names of parameters that are others by a second name, and those others'."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(prefix="model", remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied
