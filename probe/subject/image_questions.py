"""Questions about one image on one prefix: the encoder, the projector and all rows of the LLM up to
the last vision token run once, and each question costs its text.

By causality these rows do not depend on the question. Whether that holds for a model is tried out
once (`prefix_check.py`). The questions are one batch: their tokens after the prefix go through the
model's own forward or `generate`, which gets a cache as long as the prefix, and attend to the
prefix as one matrix product for all of them (`prefix_attention.py`). Equal to each question alone
up to rounding (1e-5 in float32).

    questions = ImageQuestions(subject)
    rows = [subject.encode("street.jpg", question) for question in asked]
    if not questions.reason(rows[0]):
        answers = questions.generate(rows, max_new_tokens=32)      # ids, as `Subject.generate_ids`
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import routed
from probe.hooks.block_threads import only_this_thread
from probe.hooks.layer_arguments import cache_argument, generate_argument
from probe.hooks.model_state import (
    active_interventions,
    active_reducers,
    active_text_guided_reducers,
)
from probe.hooks.model_structure import stacks
from probe.hooks.partial_cache import windows
from probe.hooks.suffix_cache import suffix_cache
from probe.records.provenance import content_hash
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix, prefix_key, tensor_hash
from probe.subject.inputs import Inputs, collate_after, with_response
from probe.subject.prefix_attention import PrefixAttention
from probe.subject.prefix_cache import CACHE_GB, CachedPrefix, PrefixCache
from probe.subject.prefix_check import check_sharing

# Arguments of `generate` that choose words from logits, whatever the cache
OPTIONS = {"max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k"} | {
    "min_p",
    "typical_p",
    "repetition_penalty",
    "num_beams",
    "use_cache",
}
Observe = Callable[[AttentionCall], None]  # is shown calls whose keys are those after the prefix


class ImageQuestions:
    """Prompts of one subject that share their images. Prefixes are kept in up to `cache_gb` GB; or
    pass a `cache` that others use too.
    """

    def __init__(self, subject: Any, cache_gb: float = CACHE_GB, cache: PrefixCache | None = None):
        self.subject = subject
        self.model = subject.model
        self.stack = stacks(subject.model)["llm"]
        self.cache = PrefixCache(self.model, self.stack, cache_gb) if cache is None else cache
        self._hashes: Any = WeakIdKeyDictionary()  # of tensors: their version and hash
        self._reasons: dict[str, str] = {}  # why sharing is not exact, by active reducers
        self._unfit = ""
        self._has_window = False
        try:
            limits = windows("measure", self.model, range(len(self.stack.layers)))
            self._has_window = any(window is not None for window in limits.values())
        except ProbeError as error:  # layers that keep more than keys and values
            self._unfit = error.got

    def key(self, row: Inputs) -> str:
        """Equal for rows with an equal prefix, "" for one without vision tokens."""
        length = shared_tokens(row)
        if not length:
            return ""
        reducers = active_reducers(self.model)
        # that of sweeps, with which the cache may be shared
        key = prefix_key(row, length, self._hash)
        return content_hash([key, reducers]) if reducers else key

    def _hash(self, tensor: Any) -> str:
        """Its `tensor_hash`; the questions about an image share their pixels."""
        if not isinstance(tensor, Tensor) or tensor.is_inference():  # whose changes are not counted
            return tensor_hash(tensor)
        version, known = self._hashes.get(tensor, (None, ""))
        if version != tensor._version:
            known = tensor_hash(tensor)
            self._hashes[tensor] = tensor._version, known
        return known

    def batch_key(self, row: Inputs) -> str:
        """Equal for rows that may run as one batch. Padding would shift what a sliding window sees,
        so that there rows are equally long.
        """
        return f"{self.key(row)} {row['input_ids'].shape[1] if self._has_window else ''}"

    @torch.no_grad()
    def reason(
        self,
        row: Inputs,
        generate: Iterable[str] = (),
        prefix: Callable[[], ImagePrefix] | None = None,
    ) -> str:
        """Why a row like this is run alone, "" where sharing is exact. The first time, this costs a
        forward.

        generate: names of the options for its answer. prefix: computes the row's prefix, if in
        another way than `prefix`.
        """
        model = self.model
        if others := set(generate) - OPTIONS:
            return f"{', '.join(sorted(others))}="
        if self._unfit:
            return self._unfit
        if active := active_interventions(model):
            return f"the model is under {active}"
        if guided := active_text_guided_reducers(model):
            return f"{guided} chooses vision tokens by the question"
        if self._text_meets_image_before_llm(row):
            return "the text reads the image before the LLM"
        reducers = active_reducers(model)
        if reducers not in self._reasons:
            make = prefix or (lambda: self.prefix(row).prefix)
            self._reasons[reducers] = self._checked(row, make)
        return self._reasons[reducers]

    def _text_meets_image_before_llm(self, row: Inputs) -> bool:
        """In LLaVA-Mini, and in a Q-Former that is given the question."""
        fuses = hasattr(self.model.config, "num_prefusion_layers")
        return fuses or any(name.startswith(("qformer", "query")) for name in row)

    def prefix(self, row: Inputs) -> CachedPrefix:
        """The shared prefix of a row, computed where it is not kept."""
        return self.cache.prefixes.get(self.key(row), lambda: self.computed_prefix(row))

    @torch.no_grad()
    def computed_prefix(self, row: Inputs, observe: Observe | None = None) -> CachedPrefix:
        """One pass of the encoder, the projector and the LLM over the shared tokens."""
        prompt = EmbeddedPrompt.of(self.model, row)
        length = shared_tokens(row)
        prefix = ImagePrefix.of(
            self.model, self.stack, prompt, length, observe=observe, any_window=True
        )
        return CachedPrefix(prefix, plain_text=False)

    @only_this_thread()
    def generate(
        self,
        rows: Sequence[Inputs],
        max_new_tokens: int = 32,
        observe: Observe | None = None,
        **generate: Any,
    ) -> list[Int[Tensor, " token"]]:
        """The ids that answer each row, as `Subject.generate_ids` gives them."""
        prefix = self.prefix(rows[0]).prefix
        batch = collate_after(rows, prefix.length)
        cache = suffix_cache(len(self.stack.layers), prefix.length)
        with routed(self.stack.attention, PrefixAttention(prefix.keys, observe)):
            return self.subject.generate_ids(
                batch, max_new_tokens, **(generate_argument(self.model, cache) | generate)
            )

    @only_this_thread()
    @torch.no_grad()
    def read(
        self, rows: Sequence[Inputs], observe: Observe | None = None
    ) -> Float[Tensor, "row token vocabulary"]:
        """One forward over what follows the prefix, whose logits it returns; rows are padded on the
        left.
        """
        prefix = self.prefix(rows[0]).prefix
        batch = collate_after(rows, prefix.length)
        mask = batch["attention_mask"]
        positions = (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)
        cache = suffix_cache(len(self.stack.layers), prefix.length)
        with routed(self.stack.attention, PrefixAttention(prefix.keys, observe)):
            output = self.model(
                input_ids=batch["input_ids"][:, prefix.length :],
                attention_mask=mask,
                position_ids=positions[:, prefix.length :],
                use_cache=True,
                **cache_argument(self.model, cache),
            )
        return output.logits

    def _checked(self, row: Inputs, prefix: Callable[[], ImagePrefix]) -> str:
        """Tries sharing out on a row beside a longer one, so that it is padded."""
        end = row.vocabulary.end_ids[0]

        def logits() -> Tensor:
            other = row if self._has_window else with_response(row, [end])
            return self.read([row, other])[:1, -1]

        try:
            arguments = (self.model, self.stack, row, logits, prefix())
            return check_sharing(*arguments, way="questions").reason
        except (ProbeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            got = error.got if isinstance(error, ProbeError) else str(error)
            return f"sharing was tried and failed: {got}"


def shared_tokens(row: Inputs) -> int:
    """Tokens up to the last vision token, 0 without vision."""
    vision = np.flatnonzero(row.types.vision[0])
    return int(vision[-1]) + 1 if len(vision) else 0
