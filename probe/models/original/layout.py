"""How the authors of one model store it, and their model from tensors in memory.

    LAYOUT = Layout(name="MQT-LLaVA", ...)
    model = LAYOUT.from_original(state_dict, config, vision_config)

A model's own file defines its `LAYOUT`; `layouts.py` has them all.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from probe.models.original.shapes import Shapes, buildable, check_shapes, expected_shapes

Settings = dict[str, Any]  # the authors' config.json
CLIP_LEVEL = "model.vision_tower.vision_model."  # a level that CLIP had before transformers 5.6


def unchanged(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """For a layout whose tensors are renamed one by one."""
    return tensors


def no_tower(settings: Settings, shapes: Shapes) -> None:
    """For a layout whose vision tower is CLIP."""


@dataclass(frozen=True)
class Layout:
    """The layout of one model's authors.

    name         the model's, for messages
    model        the native class
    recognises   whether a folder with these settings, tensor names and files has this layout
    config       the native config, from the authors' settings, those of the vision tower, and the
                 shapes of the tensors under the authors' names
    renamed      native names for one tensor
    processor    from the native config, the authors' settings, a tokenizer and the folders that may
                 hold more (see `folder.Original`)
    joined       the tensors of one file, where several of them become one
    tower        settings of a vision tower that is not CLIP, None where they are not known
    """

    name: str
    model: Any
    recognises: Callable[[Settings, Collection[str], Path], bool]
    config: Callable[[Settings, Settings, Shapes], Any]
    renamed: Callable[[str, Tensor], Iterator[tuple[str, Tensor]]]
    processor: Callable[[Any, Settings, Any, list[Path]], Any]
    joined: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = unchanged
    tower: Callable[[Settings, Shapes], Settings | None] = no_tower

    def native(self, tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """Tensors under the names of the installed transformers, without a head that is tied to the
        embeddings.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in self.joined(tensors).items():
            found |= self.renamed(name, tensor)
        if not any(name.startswith(CLIP_LEVEL) for name in expected_shapes(model)):
            found = {
                name.replace(CLIP_LEVEL, "model.vision_tower."): x for name, x in found.items()
            }
        if model.config.tie_word_embeddings:
            found.pop("lm_head.weight", None)
        return found

    def empty_model(self, config: Any, dtype: torch.dtype, device: Any = "cpu") -> Any:
        """A model with uninitialised weights."""
        with torch.device(device), no_init_weights():
            return self.model._from_config(config, dtype=dtype)

    def from_original(
        self,
        state_dict: Mapping[str, Tensor],
        config: Settings,
        vision_config: Settings,
        vision_state_dict: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """The authors' model, in eval mode and the dtype of its word embeddings; on the meta device
        if they are.

        config: their config.json. vision_config: that of the vision tower. vision_state_dict: the
        tower's own weights, for a checkpoint without them. Raises CheckpointError that names
        missing, surplus and misshapen tensors, and fields that this model does not support.
        """
        tensors = {**(vision_state_dict or {}), **state_dict}
        embeddings = next((x for name, x in tensors.items() if "embed_tokens" in name), None)
        dtype = torch.float32 if embeddings is None else embeddings.dtype
        device = "cpu" if embeddings is None else embeddings.device
        with buildable(self.name):
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            model = self.empty_model(self.config(config, vision_config, shapes), dtype, device)
        native = self.native(tensors, model)
        check_shapes({name: tensor.shape for name, tensor in native.items()}, model)
        if torch.device(device).type != "meta":
            model.load_state_dict(native, strict=False)
        model.tie_weights()
        return model.eval()
