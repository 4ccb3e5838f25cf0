"""The public names and their modules: read by type checkers, and by `__init__.py`, which imports a
module when one of its names is first used.
"""

from probe.data.image import Video as Video
from probe.data.sample import Sample as Sample
from probe.errors import ProbeError as ProbeError
from probe.interventions import ablate_heads as ablate_heads
from probe.interventions import direction as direction
from probe.interventions import drop_vision as drop_vision
from probe.interventions import knockout as knockout
from probe.interventions import patch as patch
from probe.interventions import steer as steer
from probe.interventions import swap_vision as swap_vision
from probe.interventions.sweep import VisionPart as VisionPart
from probe.interventions.sweep import drop_sweep as drop_sweep
from probe.interventions.sweep import frame_parts as frame_parts
from probe.interventions.sweep import frame_windows as frame_windows
from probe.interventions.sweep import from_layer as from_layer
from probe.interventions.sweep import until_layer as until_layer
from probe.interventions.sweep import windows as windows
from probe.measures.attention.measure import measure as measure
from probe.measures.attention.measure import measure_samples as measure_samples
from probe.measures.attention.sinks import find_sinks as find_sinks
from probe.measures.attribution import attribute as attribute
from probe.measures.attribution import deletion_curves as deletion_curves
from probe.measures.causal.attribution_patching import (
    attribution_patching as attribution_patching,
)
from probe.measures.causal.head_sweep import head_sweep as head_sweep
from probe.measures.causal.patch_sweep import patch_sweep as patch_sweep
from probe.measures.causal.steering_curve import steering_curve as steering_curve
from probe.measures.cost import cost as cost
from probe.measures.describe import describe as describe
from probe.measures.flow import flow as flow
from probe.measures.logit_lens import logit_lens as logit_lens
from probe.measures.verify import verify as verify
from probe.records import open_record as open_record
from probe.records import save_record as save_record
from probe.records import to_dataframe as to_dataframe
from probe.records.reliability import reliability as reliability
from probe.reducers.context import reduced as reduced
from probe.subject.loading import load as load
from probe.subject.subject import Subject as Subject

from . import models as models
from . import plots as plots
from . import reducers as reducers

__version__: str
__all__: list[str]
