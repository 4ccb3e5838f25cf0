"""Interventions on a model's layers while they run: context managers, undone on any exit.

drop             drop_vision: take vision tokens away, in five exactly defined modes
knockout         knockout: tokens of some types cannot attend to those of others
swap             swap_vision: text attends to another image's vision tokens
layer_target     the model, stack and layers that an intervention applies to
attention_edits  the two changes of an attention call that these are made of
sweep/           many sets of layers times many samples
"""

from probe.hooks.model_state import active_interventions
from probe.interventions.drop import drop_vision
from probe.interventions.knockout import knockout
from probe.interventions.swap import swap_vision

__all__ = ["active_interventions", "drop_vision", "knockout", "swap_vision"]
