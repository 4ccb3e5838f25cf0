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
# # Five minutes
#
# Load a model, ask it about a picture, see where it looked. The cells run as they are, offline, on the shipped toy model, whose
# results are about the toy. Then give them yours, before Jupyter starts:
#
# | variable | is | without it |
# |---|---|---|
# | `PROBE_MODEL` | a hub id or a local folder: `llava-hf/llava-1.5-7b-hf` | `tiny-llava` |
# | `PROBE_IMAGE` | an image file | a drawn scene |
# | `PROBE_QUESTION` | what to ask about it | a question about the scene |
# | `PROBE_BENCHMARK`, `PROBE_DATA` | a benchmark's name and the folder of its official files: `gqa`, `data/gqa` | drawn questions |
#
# All notebooks take the same ones.

# %% [markdown]
# ## Load and ask

# %%
import os

from IPython.display import display

import probe
from probe.data.image import open_image
from probe.models.tiny.questions import sample_image

subject = probe.load(os.environ.get("PROBE_MODEL", "tiny-llava"))
image, question, right = sample_image(seed=0)
if "PROBE_IMAGE" in os.environ or "PROBE_QUESTION" in os.environ:  # your own
    image = open_image(os.environ.get("PROBE_IMAGE", image))
    question, right = os.environ.get("PROBE_QUESTION", "Describe the image."), "not known"
display(image)
print(subject.name, "with weights", subject.provenance()["weights"])

# %% [markdown]
# ## Measure
#
# The model answers with its own attention kernel, and its attention is measured beside it. `maps=True` keeps where each word of the
# answer looked.

# %%
record = probe.measure(subject, image, question, maps=True)
answer = record["response"].values[0]
print(question, "->", answer, f"(right: {right})")
record.probe.mass("response", "vision").isel(sample=0).to_series().round(3)

# %% [markdown]
# That is one number a layer (from 0 in code, from 1 in figures): how much of the answer's attention goes to the image. And who attends to
# whom:

# %%
_ = probe.plots.mass(record)
# %% [markdown]
# ## More than one question
#
# One picture is an anecdote. The same over some questions of a benchmark, with bands over samples:

# %%
from probe.evaluation.task import BenchmarkTask

name, data = os.environ.get("PROBE_BENCHMARK", "shapes"), os.environ.get("PROBE_DATA")
samples = BenchmarkTask.read(name, data, limit=12).with_images
many = probe.measure_samples(subject, samples, stacks=["llm"], progress=False)
_ = probe.plots.mass(many, query_types=["response"])
# %% [markdown]
# ## A figure of your picture
#
# Where in the image the answer looked, layer by layer. Each patch is drawn where it lies in the picture, whatever the processor did
# to it.

# %%
_ = probe.plots.heatmaps(record, query_type="response")
# %% [markdown]
# ## Look around
#
# The same record as a page. Hover a word of the answer, or walk with ← and →, to see where it looked; drag a box on the picture to see
# which words and layers look there. (Where a notebook is not trusted, or read on the web, a picture stands in its place.)

# %%
page = record.probe.view()
page

# %% [markdown]
# ## Keep it
#
# The record and the page are one small file each. The page opens in any browser and loads nothing; the record gives every figure
# again, on a machine without the model.

# %%
from pathlib import Path

folder = Path("probe-out/five-minutes")
kept = [record.probe.save(folder / "record.zarr.zip"), page.save(folder / "view.html")]
for path in kept:
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

# %%
again = probe.open_record(kept[0])
assert again.identical(record)
shown = [record["llm"].sizes["layer"] // 2, record["llm"].sizes["layer"] - 1]
_ = again.probe.plot.heatmaps(query_type="response", layers=shown)

# %% [markdown]
# From here: [attention by type](1-attention-by-type.ipynb), [dropping vision tokens](2-dropping-vision-tokens.ipynb),
# [LLaVA-Mini](3-llava-mini.ipynb), [token reducers](4-token-reducers.ipynb), [what attention explains](5-does-attention-explain.ipynb), [what
# carries the answer](6-why.ipynb).
