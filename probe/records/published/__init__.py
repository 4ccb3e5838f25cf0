"""Numbers that papers print, as data: for overlays in figures and for comparison, never results of
ours.

    published("llava_mini_table1")          # a table by its name, as a DataFrame
    published("visionzip_llava15_7b").query("method == 'VisionZip'")

| table | what | printed in |
|---|---|---|
| `llava_mini_table1` | images: the systems of Table 1 | arXiv 2501.03895, Table 1 |
| `llava_mini_table2_video_qa` | video question answering | Table 2, through a digest |
| `llava_mini_table3_mvbench` | MVBench | Table 3, through a digest |
| `llava_mini_table4_mlvu` | MLVU | Table 4, through a digest |
| `llava_mini_table5_egoschema` | EgoSchema | Table 5, through a digest |
| `llava_mini_ablations` | vision tokens, pre-fusion, compression | Tables 6, 7, 8, 11, 12 |
| `llava_mini_latency_ms` | latency on three GPUs | Table 13 |
| `llava_mini_flops_components_t` | 10^12 operations by component | Table 14 |
| `visionzip_llava15_7b` | share of plain accuracy, 576 tokens | arXiv 2412.04467, copied |
| `visionzip_llava_next_7b` | share of plain accuracy, 2,880 tokens | arXiv 2412.04467, copied |

An empty cell is a number that the paper does not print. What contradicts itself in the papers:
Table 6's 1.81 for three pre-fusion layers does not fit its own slope (0.25 a layer gives 1.71);
Table 14 gives pre-fusion 0.125 where Table 6 adds 1.00; Section 5.2 prints 8.13 for 672 pixels
where Table 14 has 7.19. The average of Table 1 counts MME as a fraction of 2,000.
"""

from pathlib import Path

import pandas as pd

from probe.errors import one_of

FOLDER = Path(__file__).parent
TABLES = tuple(sorted(file.stem for file in FOLDER.glob("*.csv")))


def published(name: str) -> pd.DataFrame:
    """One table, its columns named as in its file.

    Raises ProbeError for another name.

    >>> float(published("llava_mini_latency_ms").set_index("method").loc["LLaVA-v1.5", "a100"])
    113.04
    """
    one_of("published", "a table", name, TABLES)
    return pd.read_csv(FOLDER / f"{name}.csv")
