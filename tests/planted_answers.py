"""A run of `probe attention --benchmark` whose truth is known: one head's mass says which answers
are right.
"""

import numpy as np
import xarray as xr

from probe.records import assemble

LAYERS, HEADS, TELLING = 3, 4, (1, 2)  # the layer and head that tell


def planted_answers(
    images: int = 40,
    per_image: int = 3,
    *,
    seed: int = 0,
    telling: float = 0.4,
    gold: str = "red",
    wrong: int | None = None,
) -> xr.DataTree:
    """`telling`: how much more mass the head has where the answer is right; the answer's
    log-probability tells less. `wrong`: how many answers are wrong, the first ones; by default each
    with a chance of 0.4.
    """
    rng = np.random.default_rng(seed)
    samples = images * per_image
    right = rng.random(samples) > 0.4
    if wrong is not None:
        right = np.arange(samples) >= wrong
    mass = rng.uniform(0, 0.5, (samples, LAYERS, HEADS)).astype(np.float32)
    mass[:, *TELLING] += np.where(right, telling, 0).astype(np.float32)
    entropy = rng.uniform(0, 3, (samples, LAYERS, HEADS, 1, 1)).astype(np.float32)
    logprob = -rng.exponential(1.0, (samples, 2)).astype(np.float32)
    logprob[:, 0] -= np.where(right, 0, 0.5)
    logprob[::2, 1] = np.nan  # answers of one token and of two
    queries = ["instruction", "response"]  # the instruction's rows see what the response's do
    types = {"query_type": queries, "key_type": ["vision", "response"]}
    keys = [np.ones((samples, 2, 2), np.int32), np.ones((samples, 2), np.int32)]
    of_both = np.stack([mass, 1 - mass], -1)[..., None, :].repeat(2, -2)
    stack = {
        "mass": of_both,
        "head_entropy": entropy.repeat(2, -2).repeat(2, -1),
        "query_count": keys[0],
        "key_count": keys[1],
    }
    root = {
        "sample": [f"q{number}" for number in range(samples)],
        "response_ids": np.where(np.isnan(logprob), -1, 5).astype(np.int32),
        "response_logprob": logprob,
        "correct": right.astype(np.float32),
        "gold": [gold] * samples,
        "image_sha256": [[f"image {number // per_image}"] for number in range(samples)],
    }
    return assemble(root, {"llm": types | stack}, {"model": "planted", "toy": "True"})
