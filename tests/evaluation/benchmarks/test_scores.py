"""Every scoring rule against cases written by hand from the official scorers' source."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false,
# reportOptionalMemberAccess=false pyright: reportIndexIssue=false Fields of a sample and results of
# a run are unions; a test knows which it has.

import math

import pytest

from probe.evaluation.benchmarks import (
    NAMES,
    gqa,
    llava_bench,
    mm_vet,
    mmbench,
    mme,
    named,
    pope,
    scienceqa,
    seed_bench,
    shapes,
)

from probe.evaluation.benchmarks import textvqa, vizwiz, vqav2  # isort: skip
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.benchmarks.vqa_accuracy import normalise, soft_score
from probe.evaluation.table_average import COLUMNS, average


def sample(key="1", answer=None, choices=(), **meta):
    base = {"question_id": key, "unit": key, "image": key, "kind": "all"}
    return Sample(key, None, "?", choices, answer, base | meta)


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("yes", "yes", 1),
        (" Yes. ", "yes", 1),
        ("Yes...", "yes", 1),
        ("yes .", "yes", 0),  # the space before the full stop stays
        ("a cat", "cat", 0),  # no article rule
        ("cats", "cat", 0),
        ("2", "two", 0),  # no number rule
        ("light-blue", "light blue", 0),
        ("Yes, it is", "yes", 0),
        ("", "yes", 0),
    ],
)
def test_gqa(text, answer, score):
    assert gqa.score(text, sample(answer=answer)) == score


def test_gqa_reports_open_and_binary_and_semantic_types():
    samples = [
        sample("1", "red", kind="attr", structural="query"),
        sample("2", "yes", kind="obj", structural="verify"),
        sample("3", "left", kind="rel", structural="choose"),
        sample("4", "dog", kind="obj", structural="query"),
    ]
    numbers = gqa.summarise(samples, {"1": "Red.", "2": "no", "3": "left"})
    assert numbers["accuracy"] == pytest.approx(200 / 3)
    assert (numbers["open"], numbers["binary"]) == (100, 50)
    assert numbers["semantic/obj"] == 0
    assert (numbers["questions"], numbers["unanswered"]) == (4, 1)


OPTIONS = ("a red car", "a blue bus", "two dogs", "none of these")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        (" B. ", "B"),
        ("(C)", "C"),
        ("D: none of these", "D"),
        ("[A],", "A"),
        ("The answer is B", "B"),
        ("B, B, B", "B"),
        ("b", None),  # letters are upper case
        ("A or B", None),  # two letters
        ("AB", None),  # no word of its own, and no option's text
        ("E", None),  # no such option
        ("it shows a blue bus on a street", "B"),
        ("It Shows A BLUE BUS", "A"),  # "A" is a word of its own: the official rule has no articles
        ("a red car and a blue bus", None),  # two options
        ("", None),
        ("I do not know", None),
    ],
)
def test_mmbench_letters(text, letter):
    assert mmbench.letter_of(text, OPTIONS) == letter


def test_mmbench_letters_stop_at_the_last_option():
    assert mmbench.letter_of("C", ("yes", "no")) is None
    assert mmbench.letter_of("C no", ("yes", "no")) == "B"


def rotations(base, answers):
    """One question in as many rotations as answers, with the right letter of each."""
    for turn, answer in enumerate(answers):
        index = turn * mmbench.ROTATION + base
        yield sample(
            str(index),
            answer,
            ("p", "q", "r"),
            unit=str(base),
            base=turn == 0,
            kind=f"kind{base % 2}",
        )


def test_mmbench_counts_a_question_only_if_all_rotations_are_right():
    samples = [*rotations(7, "ACB"), *rotations(8, "BA"), *rotations(9, "C")]
    right = {s.id: s.answer for s in samples}
    assert mmbench.summarise(samples, right)["circular"] == 100
    one_wrong = right | {"1000007": "A"}
    numbers = mmbench.summarise(samples, one_wrong)
    assert numbers["circular"] == pytest.approx(200 / 3)
    assert numbers["vanilla"] == 100  # the unrotated rows are right
    assert numbers["circular/kind1"] == 50
    base_wrong = mmbench.summarise(samples, right | {"8": "none"})
    assert base_wrong["vanilla"] == base_wrong["circular"] == pytest.approx(200 / 3)
    unanswered = {key: text for key, text in one_wrong.items() if key != "2000007"}
    assert mmbench.circular(samples, unanswered) == {"8": 1, "9": 1}


def test_mmbench_without_answers_scores_nothing():
    numbers = mmbench.summarise([sample("1", None, ("p", "q"), base=True)], {"1": "A"})
    assert math.isnan(numbers["circular"])
    assert math.isnan(numbers["vanilla"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no", "no"),
        ("NO", "yes"),  # only these three spellings mean no
        ("No, there is not.", "no"),
        ("No,", "no"),
        ("There is no dog", "no"),
        ("It is not there", "no"),
        ("Yes. There is no cat", "yes"),  # only the first sentence
        ("There isn't", "yes"),
        ("nothing", "yes"),
        ("I see (no) dog", "yes"),  # brackets stay
        ("no\ndog", "yes"),  # words are cut at spaces only
        ("", "yes"),
    ],
)
def test_pope_readings(text, said):
    assert pope.reading_of(text) == said


def test_pope_reports_five_numbers_a_set_and_their_mean():
    labels = {
        "random/1": "yes",
        "random/2": "yes",
        "random/3": "no",
        "random/4": "no",
        "popular/1": "yes",
    }
    samples = [sample(key, label, kind=key.split("/")[0]) for key, label in labels.items()]
    said = {
        "random/1": "Yes",
        "random/2": "No",
        "random/3": "Yes",
        "random/4": "No",
        "popular/1": "Yes",
    }
    numbers = pope.summarise(samples, said)
    assert [
        numbers[f"random/{name}"] for name in ("accuracy", "precision", "recall", "f1", "yes")
    ] == [50] * 5
    assert numbers["popular/f1"] == 100
    assert numbers["f1"] == 75
    assert "adversarial/f1" not in numbers
    never = pope.summarise(samples, dict.fromkeys(labels, "no"))
    assert never["random/f1"] == 0
    assert math.isnan(never["random/precision"])


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("  Two  ", "2"),
        ("none", "0"),
        ("A dog and the cat", "dog and cat"),
        ("Hello, world?", "hello world"),
        ("10,000", "10000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yalld've", "yalld've"),  # two apostrophes missing
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("what's", "what 's"),
        ("dog/cat", "dog cat"),  # between letters a mark becomes a space
        ("dog / cat", "dog cat"),
        ("well-known", "well known"),
        ("well- known-fact", "well knownfact"),  # one mark beside a space: all are dropped
        ("(left)", "left"),
        ('"stop" sign', "stop sign"),
        ("line\none\ttab", "line 1 tab"),
        ("the", ""),
        ("$5", "$5"),
        ("50%", "50%"),
    ],
)
def test_vqa_normalisation(answer, normal):
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (10, 1.0)]
)
def test_the_soft_score_leaves_each_person_out_in_turn(agreeing, score):
    """With 1: nine others see 1 of 3, the tenth sees none: 9/10 x 1/3 = 0.3, and so on."""
    references = ("two",) * agreeing + tuple(
        f"other {letter}" for letter in "bcdefghijk"[: 10 - agreeing]
    )
    assert soft_score("2.", references) == pytest.approx(score)
    for module in (textvqa, vqav2, vizwiz):
        assert module.score("The Two", sample(answer=references)) == pytest.approx(score)


def test_the_soft_score_needs_answers():
    assert all(math.isnan(module.score("x", sample())) for module in (textvqa, vqav2, vizwiz))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. New Hampshire", "B"),
        ("B.", None),  # neither one letter nor "X. "
        ("B) New Hampshire", None),
        ("The answer is B.", "B"),
        ("Because of this, The answer is C. So", "C"),
        ("The answer is B", None),  # nothing follows the letter
        ("The answer is A. The answer is B.", None),  # twice
        ("the answer is B.", None),
        ("New Hampshire", None),
        ("F", None),
        ("", None),
    ],
)
def test_scienceqa_letters(text, letter):
    assert scienceqa.letter_of(text) == letter


def test_scienceqa_counts_questions_with_a_image_apart():
    with_image = Sample("1", "x.png", "?", ("p", "q"), "A", sample().meta)
    numbers = scienceqa.summarise([with_image, sample("2", "B")], {"1": "B", "2": "B"})
    assert (numbers["image_accuracy"], numbers["text_accuracy"], numbers["accuracy"]) == (
        0,
        100,
        50,
    )
    assert scienceqa.score("C", with_image) == 0  # beyond its options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("YES!", "yes"),
        ("no.", "no"),
        ("No, it is", "no"),
        (" yes", "yes"),
        ("It is yes", "other"),  # beyond the first four characters
        ("know", "no"),  # contained
        ("", "other"),
        ("Maybe", "other"),
    ],
)
def test_mme_readings(text, said):
    assert mme.reading_of(text) == said


def test_mme_sums_points_over_categories():
    samples = [
        sample(f"{name}/{picture}/{label}", label, kind=name, unit=f"{name}/{picture}")
        for name in mme.PERCEPTION + mme.COGNITION
        for picture in "ab"
        for label in ("yes", "no")
    ]
    right = {s.id: s.answer for s in samples}
    numbers = mme.summarise(samples, right)
    assert (numbers["perception"], numbers["cognition"]) == (2000, 800)
    yes = mme.summarise(samples, dict.fromkeys(right, "Yes"))
    assert (yes["perception"], yes["existence/acc"], yes["existence/acc_plus"]) == (500, 50, 0)
    one_wrong = mme.summarise(samples, right | {"color/a/no": "Unsure"})
    assert (one_wrong["color"], one_wrong["color/acc"], one_wrong["color/acc_plus"]) == (
        125,
        75,
        50,
    )
    half = {key: text for key, text in right.items() if key != "count/a/no"}
    assert (
        mme.summarise(samples, half)["count/acc_plus"] == 100
    )  # an image with one answer is no pair
    assert math.isnan(mme.summarise(samples[4:], right)["perception"])


@pytest.mark.parametrize(
    ("text", "exact", "first"), [("A", 1, 1), ("A.", 0, 1), (" A", 1, 1), ("B", 0, 0), ("", 0, 0)]
)
def test_seed_reads_the_whole_text_and_lmms_eval_the_first_character(text, exact, first):
    asked = sample("1", "A", medium="image")
    assert (seed_bench.score(text, asked), seed_bench.first_character(text, asked)) == (
        exact,
        first,
    )
    assert seed_bench.summarise([asked], {"1": text})["first_character"] == 100 * first


def test_llava_w_is_relative_to_gpt4():
    samples = [
        sample(str(i), kind=kind) for i, kind in enumerate(("conv", "detail", "complex", "complex"))
    ]
    answers = dict.fromkeys("0123", "text")
    scores = {"0": (8.0, 4.0), "1": (10.0, 10.0), "2": (6.0, 9.0), "3": (-1.0, -1.0)}
    numbers = llava_bench.summarise(samples, answers, scores)
    # Of means, not a mean of ratios; both are rounded to three decimals first, as the script does.
    assert numbers["relative"] == pytest.approx(100 * 7.667 / 8)
    assert (numbers["conv"], numbers["complex"], numbers["unscored"]) == (50, 150, 1)
    assert math.isnan(llava_bench.summarise(samples, answers)["relative"])
    assert math.isnan(llava_bench.score("text", samples[0]))


def test_mm_vet_averages_over_questions_that_need_an_ability():
    samples = [sample("v1_0", abilities=("ocr", "math")), sample("v1_1", abilities=("ocr",))]
    numbers = mm_vet.summarise(samples, {"v1_0": "x", "v1_1": "y"}, {"v1_0": 0.2, "v1_1": 1.0})
    assert (numbers["total"], numbers["ocr"], numbers["math"]) == pytest.approx((60, 60, 20))
    assert math.isnan(numbers["rec"])
    assert mm_vet.summarise(samples, {"v1_0": "x"})["unscored"] == 1


def test_shapes_share_images_and_follow_the_seed():
    first, again, other = (shapes.read(questions=20, seed=seed).samples for seed in (0, 0, 1))
    assert [s.question for s in first] == [s.question for s in again]
    assert [s.image.tobytes() for s in first] == [s.image.tobytes() for s in again]
    assert [s.question for s in first] != [s.question for s in other]
    assert len({s.meta["image"] for s in first}) == 4
    assert shapes.read(questions=40).samples[:20] == first or len(first) == 20
    answers = {s.id: f" {s.answer}. ".capitalize() for s in first}
    assert shapes.summarise(first, answers)["accuracy"] == 100
    assert shapes.score("nothing at all", first[0]) == 0
    with pytest.raises(ProbeError, match="a number of questions of 1 or more"):
        shapes.read(questions=0)


PUBLISHED = {  # LLaVA-Mini (arXiv 2501.03895), Table 1
    "SPHINX": (78.1, 62.6, 39.9, 69.3, 51.6, 80.7, 1476.1, 66.9, 56.2, 73.5, 36.0, 56.0),
    "LLaVA-v1.5": (78.5, 62.0, 50.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 58.6, 63.4, 30.5, 56.3),
    "LLaVA-Mini": (77.6, 60.9, 56.2, 70.4, 57.0, 84.4, 1466.0, 65.6, 58.5, 68.9, 36.6, 57.9),
    "LLaVA-Mini-HD": (78.9, 61.8, 58.5, 69.7, 59.1, 85.3, 1476.8, 67.5, 60.2, 69.3, 33.9, 58.6),
    "LLaVA-Mini*": (79.0, 61.3, 57.4, 83.1, 58.5, 85.3, 1522.7, 71.6, 63.0, 70.2, 37.2, 60.7),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_average_is_the_papers(model):
    *numbers, printed = PUBLISHED[model]
    found = average(dict(zip(COLUMNS, numbers, strict=True)))
    assert found.as_printed == pytest.approx(printed, abs=0.051)
    mme_column = list(COLUMNS).index("mme")
    scaled = [
        number / 20 if column == mme_column else number for column, number in enumerate(numbers)
    ]
    assert found.rescaled == pytest.approx(sum(scaled) / 11, abs=0.01)


def test_an_average_of_ten_is_none():
    *numbers, _ = PUBLISHED["LLaVA-v1.5"]
    found = average(dict(zip(COLUMNS, numbers, strict=True)) | {"mm_vet": float("nan")})
    assert math.isnan(found.as_printed)
    assert found.missing == ("mm_vet",)


def test_every_benchmark_has_the_same_face():
    for name in NAMES:
        module = named(name)
        for function in ("read", "score", "summarise", "export"):
            assert callable(getattr(module, function)), (name, function)
        usual = "score" if name == "video_chatgpt" else "accuracy"  # a mark of 0 to 5
        assert COLUMNS.get(name, usual) == module.HEADLINE
        assert "Rule" in (module.__doc__ or "")
    with pytest.raises(ProbeError, match=r"expected one of shapes, gqa, .*, got 'gqq'"):
        named("gqq")
