"""Interventions on a model's layers while they run: context managers, undone on any exit.

drop             drop_vision: take vision tokens away, in five exactly defined modes
knockout         knockout: tokens of some types cannot attend to those of others
swap             swap_vision: text attends to another image's vision tokens
head_ablation    ablate_heads: take single heads away, in four exactly defined modes
activation_patching  patch: put the activations of another run into this one
steering         direction, steer: add a difference of means to activations
edit_report      how many calls a block changed, and by how much
layer_target     the model, stack and layers that an intervention applies to
attention_edits  the two changes of an attention call that these are made of
sweep/           many sets of layers times many samples
"""

from probe.hooks.model_state import active_interventions
from probe.interventions.activation_patching import patch
from probe.interventions.drop import drop_vision
from probe.interventions.edit_report import EditReport
from probe.interventions.head_ablation import ablate_heads
from probe.interventions.knockout import knockout
from probe.interventions.steering import Direction, direction, steer
from probe.interventions.swap import swap_vision

__all__ = [
    "Direction",
    "EditReport",
    "ablate_heads",
    "active_interventions",
    "direction",
    "drop_vision",
    "knockout",
    "patch",
    "steer",
    "swap_vision",
]
