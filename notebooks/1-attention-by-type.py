# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention by token type
#
# Which kinds of token does a LLaVA attend to, layer by layer: instruction, vision or its own response? How spread out is
# that attention, and where in the image does it fall? This is the analysis of the LLaVA-Mini paper
# ([arXiv 2501.03895](https://arxiv.org/abs/2501.03895), Fig. 2-4), on any model of the family.
#
# It runs on the shipped toy model, `tiny-llava`, so it needs no download and no GPU. What the toy shows is about the toy:
# set `PROBE_MODEL=llava-hf/llava-1.5-7b-hf`, `PROBE_IMAGE` and `PROBE_QUESTION` to an image file and a question of yours, and
# `PROBE_BENCHMARK` and `PROBE_DATA` to a benchmark's name and folder (`gqa`, `data/gqa`), to look at the real thing with the same cells.

# %%
import os

import numpy as np
from IPython.display import display

import probe
from probe.data.image import open_image
from probe.models.tiny.questions import sample_image

MODEL = os.environ.get("PROBE_MODEL", "tiny-llava")
subject = probe.load(MODEL)
image, question, right = sample_image(seed=0)
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
display(image)
print(subject.name, "with weights", subject.provenance()["weights"])
print(question, "->", subject.answer(image, question), f"(right: {right})")

# %% [markdown]
# ## One call
#
# `measure` lets the model answer, then reads prompt and answer again in one forward. Every layer's statistic is taken
# next to the model's own kernel: the logits are bit-identical, and no query × key map is ever kept.

# %%
record = probe.measure(subject, image, question, contribution=True, maps=True)
record["llm"]["mass"].dims

# %% [markdown]
# The record is an [xarray](https://docs.xarray.dev) `DataTree`: one node a stack of layers, every number with its units.

# %%
llm = record["llm"]
llm["mass"].sel(query_type="response").mean("head").isel(sample=0).to_pandas().round(3)

# %% [markdown]
# ## Fig. 2: who attends to whom
#
# `mass` is the paper's Eq. 4: the attention that a query of one type gives to all keys of another, averaged over the queries
# that can see at least one of them.

# %%
_ = probe.plots.mass(record)
# %% [markdown]
# Three other readings of the same attention:
#
# - `share` counts only queries that can see the image, so that it sums to one. In `mass`, instruction → instruction is high
#   by construction: the system prompt comes before the image and has nothing else to look at.
# - `lift` divides by what an even spread over all visible keys would give. There are many vision tokens; above 1 means that
#   they get more than their number alone explains.
# - `contribution` is the size of what arrives in the residual stream. A token can have much weight and a tiny value.

# %%
probe.plots.mass(record, value="share")
probe.plots.mass(record, value="lift")
_ = probe.plots.mass(record, value="contribution")
# %% [markdown]
# ## Fig. 3: how spread out
#
# The paper averages over heads first. Heads that each look sharply at another place then have a high entropy together,
# so the mean of the single heads is drawn, too. Models with different numbers of vision tokens are compared by the ratio
# to the highest possible entropy, never by nats.

# %%
probe.plots.entropy(record)
_ = probe.plots.entropy(record, ratio=True)
# %% [markdown]
# ## Fig. 4: where in the image
#
# Each patch is drawn where it lies in the original image, whatever the processor did to it (cropped, padded, cut to tiles).

# %%
_ = probe.plots.heatmaps(record)
# %% [markdown]
# One token of the answer at a time (`maps=True`): the row that predicts the third word.

# %%
print(list(llm["map_token"].values[0]))
_ = probe.plots.heatmaps(record, token=2)
# %% [markdown]
# Every head of every layer, and the encoder's own attention:

# %%
probe.plots.heads(record, "response", "vision")
_ = probe.plots.mass(record, stack="vision")
# %% [markdown]
# ## Look around
#
# All of it on one page: hover a word of the answer, or walk with ← and →, to see where it looked; drag a box on the picture to see
# which words and layers look there. `page.save("view.html")` keeps it.

# %%
page = record.probe.view()
page
# %% [markdown]
# ## Other types
#
# `types="fine"` takes the instruction apart (first token, system prompt, question, and the prompt's last token, whose row
# predicts the first word). A mask of your own takes the image apart: here the patches in the upper half.

# %%
fine = probe.measure(subject, image, question, types="fine", stacks=["llm"])
fine["llm"]["share"].sel(query_type="last").mean("head").isel(sample=0).to_pandas().round(3)

# %%
inputs = subject.encode(image, question)
upper = np.zeros(inputs["input_ids"].shape[1], dtype=bool)
upper[np.flatnonzero(inputs.types.vision[0])[inputs.grid[0].box[:, 3] <= 0.5]] = True
halves = probe.measure(subject, image, question, types={"upper half": upper}, stacks=["llm"])
halves["llm"]["mass"].sel(query_type="response", key_type=["upper half", "vision"]).mean(
    "head"
).isel(sample=0).to_pandas().round(3)

# %% [markdown]
# ## Many samples
#
# A list of samples gives one record, with bands over samples in the figures. Questions about the same image are no
# independent evidence, so the bootstrap draws images.

# %%
from probe.evaluation.task import BenchmarkTask

name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
samples = BenchmarkTask.read(name, data, limit=18).with_images
many = probe.measure_samples(subject, samples, stacks=["llm"], progress=False)
_ = probe.plots.mass(many, query_types=["response"])
# %% [markdown]
# ## Keep it
#
# A record is one small file. Every figure can be made again from it, on a laptop without torch.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    path = probe.save_record(many, Path(folder) / "many.zarr.zip")
    print(f"{path.stat().st_size / 1000:.0f} kB")
    again = probe.open_record(path)
assert again.identical(many)
probe.to_dataframe(again).head()

# %% [markdown]
# ## Trust it
#
# The promises, checked on this very model. The appendix says how the numbers were made.

# %%
report = probe.verify(subject)
print(report.appendix)
assert report.passed
