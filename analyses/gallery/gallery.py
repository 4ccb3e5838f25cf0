"""Ten pages of the viewer, the run viewer and the report, on the tiny models, and a screenshot of each.

    PYTHONPATH=.:tests python analyses/gallery/gallery.py    # a minute; needs Chromium and its driver

The pages are written to probe-out/gallery/, the screenshots beside this file. Models, pictures and
questions are shipped or drawn from a seed, so the same pages come out everywhere.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chromium import Browser, chromium
from PIL import Image

import probe
from probe.cli.view_run import view_run
from probe.evaluation.drop_run import DropRun
from probe.evaluation.task import BenchmarkTask
from probe.models.tiny.questions import sample_image
from probe.reducers import VisionZip
from probe.subject.subject import Subject
from probe.viewer.report import report
from probe.viewer.report_page import report_files

HERE, PAGES = Path(__file__).parent, Path("probe-out/gallery")
WIDTH, HEIGHT = 1280, 860  # pixels of the page
LARGEST = 60_000  # bytes of a screenshot
PALETTES = (256, 128, 64, 32)  # numbers of colours: the first that is small enough is taken
ALL_HEADS = {"maps": "heads", "received_head": True}


@dataclass(frozen=True)
class Page:
    """One page: its file, what is switched on in it, and how it is looked at."""

    name: str
    path: Path
    state: Mapping[str, str] = field(default_factory=dict)
    theme: str = "light"
    width: int = WIDTH
    ready: str = "return document.body.dataset.ready === 'yes'"


def words_and_boxes(llava: Subject) -> list[Page]:
    """A word of the answer, and a box on the picture, in a record with single heads."""
    image, question, _ = sample_image(seed=0)
    record = probe.measure(llava, image, question, **ALL_HEADS)
    record.probe.save(PAGES / "record.zarr.zip")
    path = record.probe.view(heads="all").save(PAGES / "record.html")
    word = {"word": "9", "layer": "4"}
    box = {"box": "0.35,0.3,0.75,0.7", "layer": "4", "sorted": "true"}
    return [
        Page("word", path, word),
        Page("box", path, box, theme="dark"),
        Page("phone", path, word, width=390),
    ]


def llava_mini(mini: Subject) -> list[Page]:
    """What the words read in LLaVA-Mini's pre-fusion, and the frames of a video."""
    image, question, _ = sample_image(seed=0)
    path = probe.measure(mini, image, question).probe.view().save(PAGES / "llava-mini.html")
    prefusion = {"stack": "prefusion", "query": "instruction", "layer": "1"}
    clip = probe.Video([sample_image(seed)[0] for seed in range(6)], fps=2)
    film = probe.measure(mini, clip, question, maps=True).probe.view().save(PAGES / "video.html")
    return [Page("llava-mini", path, prefusion), Page("video", film, {"image": "4"})]


def compared(llava: Subject) -> list[Page]:
    """The untouched model beside one that has fewer vision tokens, or none in some layers; both
    read the same answer.
    """
    image, question, _ = sample_image(seed=0)
    base = probe.measure(llava, image, question, maps=True)
    with probe.reduced(llava, VisionZip(dominant=8, contextual=2)):
        zipped = probe.measure(llava, image, question, base, maps=True)
    with probe.drop_vision(llava, range(4, 8)):
        dropped = probe.measure(llava, image, question, base, maps=True)
    others = {"visionzip": (zipped, "VisionZip 8 + 2"), "dropped": (dropped, "no vision from 5 on")}
    pages = []
    for name, (other, label) in others.items():
        viewer = base.probe.view(other, labels=["untouched", label])
        pages.append(Page(name, viewer.save(PAGES / f"{name}.html"), {"layer": "4"}))
    return pages


def attributed(llava: Subject) -> list[Page]:
    """What the answer owes to each patch, on the picture that the attention lies on."""
    image, question, _ = sample_image(seed=0, kind="colour")
    record = probe.measure(llava, image, question, maps=True)
    owed = probe.attribute(llava, image, question, progress=False)
    page = record.probe.view(attributions={"ablation: what the answer loses, in nats": owed})
    path = page.save(PAGES / "attribution.html")
    return [Page("attribution", path, {"quantity": "effect-0", "layer": "4"})]


def two_images(llava: Subject) -> list[Page]:
    """Two images in one prompt, each with its part of the attention."""
    images = [sample_image(seed)[0] for seed in (0, 5)]
    record = probe.measure(llava, images, "What is in the picture?", maps=True)
    path = record.probe.view().save(PAGES / "two-images.html")
    return [Page("two-images", path, {"image": "1", "layer": "4"})]


def run_of_samples(llava: Subject) -> list[Page]:
    """The questions that are wrong when the model sees no vision in two layers, and were right."""
    task = BenchmarkTask.read("shapes", limit=48)
    dropping = DropRun(llava, task, {"mask": probe.windows(2)})
    folder = PAGES / "drop"
    dropping.run(folder)
    view_run([folder], None, PAGES / "run", opens=False)
    state = {"filter": "wrong now, right before"}
    return [Page("run", PAGES / "run" / "index.html", state)]


def report_of_record() -> list[Page]:
    """The report on the record of the first page."""
    parts = report([PAGES / "record.zarr.zip"])
    path = PAGES / "report.html"
    path.write_bytes(next(iter(report_files(parts, "html").values())))
    return [Page("report", path, ready="return document.readyState === 'complete'")]


def take(browser: Browser, page: Page) -> None:
    """A screenshot of the page, with few colours so that it stays small."""
    browser.resize(page.width, HEIGHT)
    browser.prefer(page.theme)
    state = "&".join(f"{name}={value}" for name, value in page.state.items())
    # what follows the ? makes it another address, so that the page is loaded anew
    browser.open(f"{page.path.resolve().as_uri()}?{page.name}#{state}", page.ready)
    path = HERE / f"{page.name}.png"
    browser.screenshot(path)
    path.write_bytes(small(Image.open(path).convert("RGB")))
    errors = browser.errors()
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", *errors)
    if errors:
        raise SystemExit(f"{path.name}: expected an empty console")


def small(picture: Image.Image) -> bytes:
    """A PNG of at most LARGEST bytes, with as many colours as that allows."""
    for colours in PALETTES:
        file = io.BytesIO()
        limited = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        limited.save(file, format="PNG", optimize=True)
        if file.tell() <= LARGEST:
            return file.getvalue()
    raise SystemExit(f"expected at most {LARGEST} bytes, got {file.tell()}")


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    llava, mini = probe.load("tiny-llava"), probe.load("tiny-llava-mini")
    makers: list[Callable[[], list[Page]]] = [
        lambda: words_and_boxes(llava),
        lambda: llava_mini(mini),
        lambda: compared(llava),
        lambda: attributed(llava),
        lambda: two_images(llava),
        lambda: run_of_samples(llava),
        report_of_record,
    ]
    pages = [page for make in makers for page in make()]
    with chromium() as browser:
        for page in pages:
            take(browser, page)


if __name__ == "__main__":
    main()
