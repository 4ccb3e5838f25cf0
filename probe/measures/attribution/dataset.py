"""An attribution as a labelled dataset: numbers with units and provenance.

Dims: `feature` (regions, then words), `token` (the chosen tokens of the answer), `layer` and `head`
(counted from 0), `key` (vision tokens of the LLM) and `patch` (the encoder's), with the feature
that each lies in. `kind` in attrs says what a file holds; `probe.save_record` and
`probe.open_record` take it.
"""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from probe.measures.attribution.features import Features
from probe.measures.attribution.regions import patches_of_pictures
from probe.records.schema import Variable, dataset, image_variables, patch_variables
from probe.records.thumbnails import thumbnails
from probe.subject.target_response import TargetResponse

SCHEMA = {
    "attribution": Variable(
        "feature", "nat", "effect of the feature on the answer's log-probability"
    ),
    "token_attribution": Variable("token feature", "nat", "the same for each token of the answer"),
    "layer_attribution": Variable("layer feature", "nat", "the same in each layer"),
    "logprob": Variable("", "nat", "log-probability of the answer"),
    "logprob_without": Variable("", "nat", "the same with every feature ablated"),
    "delta": Variable(
        "", "nat", "sum of the attributions minus the effect of all features together"
    ),
    "token_logprob": Variable("token", "nat", "log-probability of the token"),
    "token_id": Variable("token", "index", "id of the token", dtype=None),
    "token_text": Variable("token", "text", "token of the answer", dtype="object"),
    "feature_kind": Variable("feature", "text", "region, word or layer", dtype="object"),
    "mass": Variable("layer head feature", "fraction", "attention per query"),
    "lift": Variable("layer head feature", "ratio", "attention ÷ an even spread"),
    "received": Variable("layer head feature", "fraction", "attention received by a key"),
    "contribution": Variable("layer head feature", "norm", "contribution to the residual stream"),
    "key_feature": Variable("key", "index", "feature of the vision key", dtype="int32"),
    "patch_feature": Variable("patch", "index", "feature of the patch", dtype="int32"),
    **image_variables(),
    **patch_variables("key"),
    **patch_variables("patch"),
}


def tabulate(
    values: Mapping[str, Any],
    answer: TargetResponse,
    features: Features,
    attrs: Mapping[str, Any],
    schema: Mapping[str, Variable] = SCHEMA,
) -> xr.Dataset:
    """The dataset of one attribution from plain arrays named as in `SCHEMA`. `schema`: the same
    with other units and meanings.
    """
    inputs = answer.inputs
    arrays = {
        "token_id": answer.ids.cpu().numpy(),
        "token_text": answer.tokens,
        "feature_kind": features.kind,
        "key_feature": features.keys,
        "patch_feature": features.patches,
        **values,
        **thumbnails(inputs.images[0]),
        **inputs.grid[0].variables("key"),
        **patches_of_pictures(inputs).variables("patch"),
    }
    return dataset("attribute", arrays, schema, {"feature": features.names}, attrs)
