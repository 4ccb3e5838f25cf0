"""What LLaVA-1.5 and LLaVA-Mini cost: FLOPs counted from shapes, beside those that the LLaVA-Mini
paper prints.

    python analyses/cost/cost.py  # counts, figures and the tables of README.md: a minute, no weights
    python analyses/cost/cost.py --measure  # also times models of these widths, an eighth as deep: 3 GB

Configs of the real models stand here and not in `probe`: what is counted follows from them alone.
`published.csv` and `components.csv` hold what the paper prints (arXiv 2501.03895, Tables 6, 8, 12
and 14).
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

import probe
from probe.measures.cost import cost, formula_flops, join, read, table, write
from probe.models.llava_mini import LlavaMiniConfig

HERE = Path(__file__).parent
TEXT = 43  # tokens; see README.md


def clip(depth: int = 24) -> CLIPVisionConfig:
    """CLIP ViT-L/14 at 336 pixels. Source: config.json of openai/clip-vit-large-patch14-336."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=depth,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def vicuna(depth: int = 32) -> LlamaConfig:
    """Vicuna-7B. Source: config.json of lmsys/vicuna-7b-v1.5."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=depth,
        num_attention_heads=32,
        vocab_size=32000,
    )


def llava(depth: int = 1) -> LlavaConfig:
    """LLaVA-1.5-7B, or every stack of it `depth` times shallower."""
    spare: Any = 31999  # an id that the embedding has, so that it can also be run
    return LlavaConfig(
        vision_config=clip(24 // depth), text_config=vicuna(32 // depth), image_token_index=spare
    )


def mini(layers: int = 4, size: int = 1, depth: int = 1, **fields: Any) -> LlavaMiniConfig:
    """LLaVA-Mini with Vicuna-7B: so many layers of pre-fusion, size x size tokens."""
    parts: dict[str, Any] = {"vision_config": clip(24 // depth), "text_config": vicuna(32 // depth)}
    return LlavaMiniConfig(**parts, compressor_size=size, num_prefusion_layers=layers, **fields)


def case(config: Any, model: str, name: str = "", **options: Any) -> xr.Dataset:
    """One case, of a model of this name."""
    counted = cost(config, text_tokens=TEXT, name=name or model, **options)
    return counted.assign_coords(model=("case", [model]))


def tables_of_the_paper() -> xr.Dataset:
    """Every case of `published.csv`, in its order."""
    cases = [case(llava(), "llava-1.5-7b", "LLaVA-1.5")]
    shapes = [(1, 0), (4, 0), (8, 0), (12, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 4)]
    cases += [
        case(mini(layers, size), "llava-mini", mini_name(size, layers)) for size, layers in shapes
    ]
    cases.append(case(llava(), "llava-1.5-7b", "LLaVA-1.5 at 672 px", resolution=672))
    for size in (8, 1):
        cases.append(
            case(mini(4, size), "llava-mini", f"{mini_name(size, 4)}, 672 px", resolution=672)
        )
    cases.append(case(mini(4, fusion="in_llm"), "llava-mini in the LLM", "LLaVA-Mini in the LLM"))
    return join(cases)


def mini_name(size: int, layers: int) -> str:
    return f"LLaVA-Mini, vision tokens: {size**2}, pre-fusion: {layers}"


def figures_of_the_paper() -> dict[str, xr.Dataset]:
    """What Fig. 7 to 9 draw: against vision tokens, resolution and frames."""
    both = {"LLaVA-1.5-7B": llava(), "LLaVA-Mini": mini()}
    tokens = [case(mini(4, size), "LLaVA-Mini") for size in (1, 2, 4, 8, 12, 24)]
    tokens += [
        case(llava(), "LLaVA-1.5-7B, kept by a reducer", vision_tokens=n)
        for n in (1, 16, 64, 144, 288, 576)
    ]
    sides = [
        case(config, name, resolution=side)
        for name, config in both.items()
        for side in (336, 672, 1008, 1344)
    ]
    videos = [
        case(config, name, frames=n)
        for name, config in both.items()
        for n in (1, 10, 100, 1000, 10800)
    ]
    return {"vision_tokens": join(tokens), "height": join(sides), "frames": join(videos)}


def measured(repeats: int) -> xr.Dataset:
    """Prefill of models an eighth as deep, with random weights in bfloat16; pre-fusion of one
    layer.
    """
    options: dict[str, Any] = {"measure": repeats, "dtype": "bfloat16", "rows": "needed"}
    cases = [case(llava(8), "LLaVA-1.5", "LLaVA-1.5, 576 vision tokens", **options)]
    for size, words in ((1, "1 vision token"), (8, "64 vision tokens")):
        cases.append(case(mini(1, size, 8), "LLaVA-Mini", f"LLaVA-Mini, {words}", **options))
    return join(cases)


def linear(costs: xr.Dataset) -> xr.DataArray:
    """Tera-operations by case and component as the paper counts: attention's own products left
    out.
    """
    return costs["flops"].sel(operation="linear") / 1e12


def totals(costs: xr.Dataset) -> pd.DataFrame:
    """What the paper prints beside ours, and ours with attention counted."""
    published = pd.read_csv(HERE / "published.csv")
    ours = linear(costs).sum("component").values
    with_attention = costs["flops"].sum(["component", "operation"]).values / 1e12
    return pd.DataFrame(
        {
            "case": costs["case"].values,
            "paper": published["flops_t"],
            "ours": ours.round(3),
            "difference": (ours - published["flops_t"]).round(3),
            "with attention": with_attention.round(3),
            "source": published["source"],
        }
    )


def components(costs: xr.Dataset) -> pd.DataFrame:
    """Table 14: a pair of rows a model and resolution."""
    rows = []
    for printed in pd.read_csv(HERE / "components.csv").to_dict("records"):
        at = (costs["model"] == printed["model"]) & (costs["height"] == printed["resolution"])
        ours = linear(costs).isel(
            case=at.values.nonzero()[0][-1 if printed["model"] == "llava-mini" else 0]
        )
        if (printed["model"], printed["resolution"]) == ("llava-mini", 336):
            ours = linear(costs).sel(case=mini_name(1, 4))
        names = [name for name in printed if name not in ("model", "resolution")]
        told = {"model": printed["model"], "resolution": printed["resolution"]}
        for source, numbers in (
            ("paper", printed),
            ("ours", {name: float(ours.sel(component=name)) for name in names}),
        ):
            parts = {name.replace("_", " "): round(numbers[name], 3) for name in names}
            rows.append(
                {
                    **told,
                    "of": source,
                    **parts,
                    "total": round(sum(numbers[name] for name in names), 3),
                }
            )
    return pd.DataFrame(rows)


def compressor(costs: xr.Dataset) -> str:
    """What query compression adds to averaging."""
    told = []
    for name in (mini_name(1, 4), mini_name(2, 4)):
        flops = costs["flops"].sel(case=name, component="compressor").values / 1e9
        told.append(f"{flops.sum():.4f} G ({flops[0]:.4f} in products with weights)")
    return f"{told[0]} for 1 token and {told[1]} for 4"


def memory(costs: xr.Dataset, videos: xr.Dataset) -> pd.DataFrame:
    """Megabytes (of a million bytes) at two bytes a number."""
    rows = []
    for name, cases in (
        ("one image", costs.sel(case=["LLaVA-1.5", mini_name(1, 4)])),
        ("10,800 frames", videos.isel(case=(videos["frames"] == 10800).values)),
    ):
        for at in range(cases.sizes["case"]):
            one = cases.isel(case=at)
            kept, weights = one["kv_cache"], float(one["weights"].sum())
            rows.append(
                {
                    "model": str(one["model"].values),
                    "of": name,
                    "vision tokens": int(one["vision_tokens"]),
                    "cache of vision": f"{float(kept.sel(token_type='vision')) / 1e6:,.1f}",
                    "cache of text": f"{float(kept.sel(token_type='text')) / 1e6:,.1f}",
                    "weights": f"{weights / 1e6:,.0f}",
                    "weights and cache": f"{(weights + float(kept.sum())) / 1e6:,.0f}",
                    "image in pre-fusion, if kept": f"{float(one['prefix_cache']) / 1e6:,.1f}",
                }
            )
    return pd.DataFrame(rows)


def formula() -> pd.DataFrame:
    """What fewer tokens leave: by the formula of the reducers' papers, and counted with everything
    around the LLM.
    """
    settings: dict[str, Any] = {
        "none": 576,
        "VisionZip 192": 192,
        "VisionZip 128": 128,
        "VisionZip 64": 64,
        "FastV, half from layer 3 on": [576] * 2 + [288] * 30,
    }
    rows, full = [], {}
    for name, tokens in settings.items():
        one = case(llava(), "LLaVA-1.5-7B", name, vision_tokens=tokens)
        layers = [tokens] * 32 if isinstance(tokens, int) else tokens
        numbers = {
            "formula, vision tokens alone": formula_flops(layers, 4096, 11008),
            f"formula, {TEXT} text tokens": float(one["formula_flops"].item()),
            "counted, LLM": float(one["flops"].sel(component="llm").sum()),
            "counted, all": float(one["flops"].sum()),
        }
        full = full or numbers
        rows.append(
            {"kept": name, **{key: f"{value / full[key]:.1%}" for key, value in numbers.items()}}
        )
    return pd.DataFrame(rows)


def latencies(costs: xr.Dataset) -> pd.DataFrame:
    rows = table(costs)
    base = rows.iloc[0]
    return pd.DataFrame(
        {
            "case": rows["case"],
            "ms to the first token": [
                f"{a:.0f} ± {b:.0f}"
                for a, b in zip(rows["latency (ms)"], rows["spread (ms)"], strict=True)
            ],
            "of LLaVA-1.5's": (rows["latency (ms)"] / base["latency (ms)"]).map("{:.2f}".format),
            "operations, of LLaVA-1.5's": (rows["total (TFLOP)"] / base["total (TFLOP)"]).map(
                "{:.2f}".format
            ),
            "peak memory (MB)": rows["peak memory (MB)"].map("{:.0f}".format),
        }
    )


def draw(costs: xr.Dataset, sweeps: dict[str, xr.Dataset]) -> None:
    shown = costs.isel(case=[0, 1, 2, 3, 4, 5, 8])
    figures = {
        "flops": probe.plots.flops(shown),
        **{f"flops-{axis}": probe.plots.flops(sweep, axis) for axis, sweep in sweeps.items()},
    }
    figures["memory-frames"] = probe.plots.memory(sweeps["frames"], "frames", limit=24e9)
    figures["memory-vision_tokens"] = probe.plots.memory(
        sweeps["vision_tokens"], "vision_tokens", weights=False
    )
    if (HERE / "measured.json").exists():
        figures["latency"] = probe.plots.latency(read(HERE / "measured.json"))
    for name, axis in figures.items():
        axis.get_figure(root=True).savefig(  # pyright: ignore[reportOptionalMemberAccess]
            HERE / f"{name}.png", dpi=120, bbox_inches="tight"
        )


def markdown(rows: pd.DataFrame) -> str:
    lines: Sequence[Sequence[Any]] = [
        list(rows),
        ["---"] * len(rows.columns),
        *rows.values.tolist(),
    ]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="also time models an eighth as deep")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        write(measured(options.repeats), HERE / "measured.json")
    costs, sweeps = tables_of_the_paper(), figures_of_the_paper()
    table(join([costs, *sweeps.values()])).to_csv(
        HERE / "costs.csv", index=False, float_format="%.6g"
    )
    draw(costs, sweeps)
    sections = {
        "totals": markdown(totals(costs)),
        "components": markdown(components(costs)),
        "compressor": compressor(costs),
        "memory": markdown(memory(costs, sweeps["frames"])),
        "formula": markdown(formula()),
    }
    if (HERE / "measured.json").exists():
        sections["latency"] = markdown(latencies(read(HERE / "measured.json")))
    readme = (HERE / "README.md").read_text()
    for name, text in sections.items():
        print(f"{name}\n{text}\n")
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end -->)"
        readme = re.sub(pattern, lambda _, text=text: text, readme, flags=re.DOTALL)
    (HERE / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
