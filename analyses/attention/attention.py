"""Fig. 2, 3 and 4 of the LLaVA-Mini paper for the shipped tiny model, over many questions.

    python analyses/attention/attention.py      # 40 frozen images, 7 questions each: about a minute
    python analyses/attention/attention.py --images 200

Writes the figures and `numbers.csv` beside this file, and the record (from which `--draw` makes the
figures again, without model or torch) to probe-out/analyses/attention.zarr.zip.
"""

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr

import probe
from probe.records import entropy_ratio

HERE = Path(__file__).parent
RECORD = Path("probe-out/analyses/attention.zarr.zip")


def record_of(images: int) -> xr.DataTree:
    """All seven kinds of question about the first images of the frozen set, answered by the model
    itself.
    """
    from probe.models.tiny.scenes import draw
    from probe.models.tiny.training.evaluate import frozen

    samples = []
    for number in range(images):
        scene, questions = frozen(number)
        image = draw(scene)
        samples += [
            probe.Sample(f"{number:04d}-{q.kind}", image, q.question, answer=q.answer)
            for q in questions
        ]
    return probe.measure_samples(
        probe.load("tiny-llava"), samples, contribution=True, progress=True
    )


def numbers(record: xr.DataTree) -> pd.DataFrame:
    """A row a layer: means over samples and heads of what the README speaks of."""
    llm = record["llm"].to_dataset().mean(["sample", "head"])
    ratio = entropy_ratio(record).mean("sample")
    table = {"layer": llm["layer"].values + 1}
    for query in ("instruction", "response"):
        for key in ("instruction", "vision", "response"):
            for value in ("mass", "share", "lift", "contribution"):
                table[f"{value} {query} → {key}"] = (
                    llm[value].sel(query_type=query, key_type=key).values
                )
        for value in ("entropy", "head_entropy"):
            table[f"{value} {query} → vision"] = (
                llm[value].sel(query_type=query, key_type="vision").values
            )
        table[f"entropy_ratio {query} → vision"] = ratio.sel(
            query_type=query, key_type="vision"
        ).values
    return pd.DataFrame(table).dropna(axis="columns", how="all")


def draw(record: xr.DataTree) -> None:
    figures = {
        "mass": probe.plots.mass(record).figure,
        "share": probe.plots.mass(record, value="share").figure,
        "lift": probe.plots.mass(record, value="lift").figure,
        "contribution": probe.plots.mass(record, value="contribution").figure,
        "entropy": probe.plots.entropy(record),
        "heatmaps": probe.plots.heatmaps(record, sample=6),
        "heads": probe.plots.heads(record, "response", "vision").figure,
        "encoder": probe.plots.mass(record, stack="vision").figure,
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument(
        "--draw", action="store_true", help="only draw the record of an earlier run"
    )
    options = parser.parse_args()
    if not options.draw:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        probe.save_record(record_of(options.images), RECORD)
    record = probe.open_record(RECORD)
    draw(record)
    table = numbers(record)
    table.to_csv(HERE / "numbers.csv", index=False, float_format="%.4f")
    shown = [c for c in table if c == "layer" or c.endswith("response → vision")]
    print(table[shown].round(3).to_string(index=False))
    print(f"{record.sizes['sample']} questions, {RECORD.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
