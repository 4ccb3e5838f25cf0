"""What can be done to a model's layers while they run. Context managers, undone on any exit.

drop      drop_vision: take vision tokens away, in four exact senses
knockout  knockout: tokens of one type cannot see those of another
swap      swap_vision: text reads another image's vision tokens
target    which model and which layers; what is at work right now
fusions   which rows run through the pre-fusion of LLaVA-Mini
edits     the changes of one attention call that these are made of
"""

from probe.hooks.model_state import active_interventions
from probe.interventions.drop import drop_vision
from probe.interventions.knockout import knockout
from probe.interventions.swap import swap_vision

__all__ = ["active_interventions", "drop_vision", "knockout", "swap_vision"]
