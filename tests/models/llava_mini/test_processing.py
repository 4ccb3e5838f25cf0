"""Images, videos and prompts, as the authors' code makes them."""

import json

import numpy as np
import pytest
import torch
from golden_cases import SHARED
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.models.llava_mini import LlavaMiniProcessor
from probe.models.llava_mini.chat_templates import STYLES, chat_template, template_for
from probe.models.llava_mini.image_processing import frame_indices, split_views, video_frames

PREPROCESSED = SHARED / "llava_mini"
QUESTION, SECOND = "What's the text on the cake?", "Which colour?"
SPECIAL = [
    "<|begin_of_text|>",
    "<unused>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
]


def golden(name):
    path = PREPROCESSED / f"{name}.json"
    if not path.exists():
        pytest.skip("the project's shared folder is not here")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def tokenizer():
    """The goldens' toy tokenizer: bytes in GPT-2's order, then special tokens; it begins with
    begin-of-text, once.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_gpt2_order)
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 256)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[4],
        pad_token=SPECIAL[5],
        padding_side="left",
    )


def _gpt2_order(char):
    code = ord(char)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable.index(code) if code in printable else len(printable) + code - 256


@pytest.fixture(scope="module")
def images():
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.fixture
def processor(tokenizer, images):
    return LlavaMiniProcessor(
        images, tokenizer, compressor_size=2, chat_template=chat_template("llava_llama_3_1")
    )


def picture(width=50, height=33, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    )


def user(text, image=False):
    return {
        "role": "user",
        "content": [{"type": "image"}] * image + [{"type": "text", "text": text}],
    }


# ------------------------------------------------------------------------------------------
# prompts


@pytest.mark.parametrize("style", STYLES)
def test_prompts_equal_the_authors(processor, style):
    name = "llava_llama_3_1|template_always_gen_prompt" if style == "llava_llama_3_1" else style
    expected = golden("prompts")["prompts"][name]
    first = [user(QUESTION, image=True)]
    second = [*first, {"role": "assistant", "content": "Happy birthday."}, user(SECOND)]
    ask = {"chat_template": chat_template(style), "add_generation_prompt": True}
    assert processor.apply_chat_template(first, **ask) == expected["first_turn"]
    if style != "plain":  # the original raises there
        assert processor.apply_chat_template(second, **ask) == expected["second_turn"]


def test_ids_equal_the_authors_with_begin_of_text_twice(processor):
    expected = golden("prompts")["tokenizer_image_token"]
    prompt = golden("prompts")["prompts"]["llava_llama_3_1|template_always_gen_prompt"][
        "first_turn"
    ]
    for case in expected.values():
        text = case.get("text", prompt)
        ids = processor(text=text, images=[picture()] * text.count("<image>"))["input_ids"][
            0
        ].tolist()
        four = [processor.image_token_id] * 4
        theirs = [i for id_ in case["ids"] for i in (four if id_ == -200 else [id_])]
        assert ids == theirs


def test_a_checkpoints_template_is_its_tokenizers_own(processor, tokenizer):
    """Llama 3's own knows neither images nor LLaVA's system prompt; Vicuna's tokenizer has none at
    all.
    """
    always = (
        "{% for message in messages %}"
        "{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] "
        "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    )
    header = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    first = [user(QUESTION, image=True)]
    second = [*first, {"role": "assistant", "content": "Happy birthday."}, user(SECOND)]
    for own in (
        always + header,
        always + "{% if add_generation_prompt %}" + header + "{% endif %}",
        None,
    ):
        tokenizer.chat_template = own
        ask = {"chat_template": template_for(tokenizer), "add_generation_prompt": True}
        expected = golden("prompts")["prompts"]["llava_llama_3_1|template_always_gen_prompt"]
        assert processor.apply_chat_template(first, **ask) == expected["first_turn"]
        assert processor.apply_chat_template(second, **ask) == expected["second_turn"]
    brief = [{"role": "system", "content": "Be brief."}, *first]
    tokenizer.chat_template = {"default": always}
    text = processor.apply_chat_template(brief, chat_template=template_for(tokenizer))
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    )
    assert "helpful" not in text
    tokenizer.chat_template = None
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    assert template_for(plain) == chat_template("v1")


def test_training_labels_equal_the_authors(processor):
    expected = golden("prompts")["train_labels_llama_3_1"]["always_gen"]
    messages = [
        user("Hi?", image=True),
        {"role": "assistant", "content": "Yes."},
        user("Why?"),
        {"role": "assistant", "content": "No."},
    ]
    example = processor.training_example(messages, tokens=[1])
    assert [-200 if i == processor.image_token_id else i for i in example["input_ids"]] == expected[
        "input_ids"
    ]
    assert example["labels"] == expected["labels"]


def test_plain_training_labels_equal_the_authors(processor):
    expected = golden("prompts")["train_labels_plain"]
    processor.chat_template = chat_template("plain")
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a cake"}]
    example = processor.training_example(messages, tokens=[1])
    assert [-200 if i == processor.image_token_id else i for i in example["input_ids"]] == expected[
        "input_ids"
    ]
    assert example["labels"] == expected["labels"]


# ------------------------------------------------------------------------------------------
# pixels


@pytest.mark.parametrize(
    ("ratio", "sizes"),
    [(1, "standard"), (2, "hd_sub_image_sizes_wh"), (3, "hd3_sub_image_sizes_wh")],
)
def test_views(ratio, sizes):
    expected = golden("preproc").get(sizes, [[500, 333]])
    assert [list(view.size) for view in split_views(picture(500, 333), ratio)] == expected


def test_padding_each_view_or_the_whole_first():
    expected, colour = golden("preproc"), tuple(golden("preproc")["pad_background_rgb"])
    assert [
        list(v.size) for v in split_views(picture(500, 333), 2, colour, pad_first=True)
    ] == expected["hd_train_pad_sub_image_sizes_wh"]
    each = split_views(picture(500, 333), 2, colour)
    assert [v.size for v in each] == [(250, 250)] * 4 + [(500, 500)]
    assert each[-1].getpixel((0, 0)) == colour and each[-1].getpixel((250, 250)) != colour


def test_views_are_row_major_and_the_whole_comes_last():
    whole = picture(40, 40)
    tiles = split_views(whole, 2)
    assert tiles[1].tobytes() == whole.crop((20, 0, 40, 20)).tobytes()
    assert tiles[2].tobytes() == whole.crop((0, 20, 20, 40)).tobytes()
    assert tiles[4].tobytes() == whole.tobytes()


def test_frame_indices_equal_the_authors():
    for key, expected in golden("preproc")["get_seq_frames"].items():
        total, count = map(int, key.split(","))
        assert frame_indices(total, count) == expected
    assert frame_indices(40, int(40 // 8.0)) == golden("preproc")["video"]["frame_idx_1fps"]


def test_a_panorama_in_hd(tokenizer, images):
    processor = LlavaMiniProcessor(images, tokenizer, resolution_ratio=2)
    assert processor.pixels(picture(700, 100)).shape == (5, 3, 28, 28)
    with pytest.raises(ValueError, match="at least 2 x 2 pixels"):
        processor.pixels(picture(700, 1))


# ------------------------------------------------------------------------------------------
# processor


def test_placeholders_padding_and_pixels(processor):
    inputs = processor(text=["<image>\nWhat?", "Hi <image> and <image>!"], images=[picture()] * 3)
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [4, 8]
    assert inputs["pixel_values"].shape == (3, 1, 3, 28, 28)
    assert not inputs["attention_mask"][0, 0] and inputs["attention_mask"][1].all()
    right = processor(text=["<image>a", "bcdefghij"], images=picture(), padding_side="right")
    assert right["attention_mask"][0, 0] and not right["attention_mask"][0, -1]


def test_videos_stand_at_image_and_short_ones_are_padded(processor):
    long, short = [picture(seed=i) for i in range(3)], [picture()]
    inputs = processor(text=["<image>\nA?", "<video>\nB?"], videos=[long, short])
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [12, 4]
    assert inputs["pixel_values_videos"].shape == (2, 3, 1, 3, 28, 28)
    assert not inputs["pixel_values_videos"][1, 1:].any()


def test_frames_from_a_folder(tmp_path, processor):
    for i in range(3):
        picture(seed=i).save(tmp_path / f"{i}.png")
    assert sum(1 for _ in video_frames(tmp_path)) == 3
    assert torch.equal(next(processor.frames(tmp_path)), next(processor.frames([picture(seed=0)])))


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    for i in (1, 2, 10):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "._frame1.png").write_bytes(b"what a Mac leaves behind")
    assert [frame.getpixel((0, 0))[0] for frame in video_frames(tmp_path)] == [1, 2, 10]


def test_videos_without_tokens_must_be_of_one_length(tokenizer, images):
    processor = LlavaMiniProcessor(images, tokenizer, compressor_size=0)
    with pytest.raises(ValueError, match=r"no token tells it, got videos of 1, 2 frames"):
        processor(text=["<video>", "<video>"], videos=[[picture()], [picture(), picture()]])


def test_mistakes_are_told_in_one_line(processor, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_text("no image")
    for call, told in [
        (
            lambda: list(video_frames(tmp_path / "broken")),
            "expected an image as a frame, got .*1.jpg",
        ),
        (
            lambda: list(video_frames(tmp_path / "no.mp4")),
            "a video file or a folder of frames, got no .*no.mp4",
        ),
        (
            lambda: processor(text="<image>", images=[picture()] * 2),
            "as many images as the texts have <image>",
        ),
        (lambda: processor(text="<image>", videos=[[]]), "at least one frame"),
        (lambda: list(video_frames(tmp_path)), "expected frames"),
        (lambda: frame_indices(0, 1), "at least one frame"),
    ]:
        with pytest.raises(ValueError, match=told) as error:
            call()
        assert "\n" not in str(error.value)


def test_images_are_resized_by_pil(processor, tokenizer):
    """Where torchvision is installed, transformers loads an image processor that uses it."""

    class OtherBackend(CLIPImageProcessorPil):
        backend = "torchvision"

    settings = processor.image_processor.to_dict()
    loaded = LlavaMiniProcessor(OtherBackend.from_dict(settings), tokenizer)
    assert type(loaded.image_processor) is CLIPImageProcessorPil
    assert loaded.image_processor.to_dict() == settings


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LlavaMiniProcessor and loaded.compressor_size == 2
    assert loaded.image_token_id == processor.image_token_id
    ours, theirs = (p(text="a <image> b", images=picture()) for p in (processor, loaded))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_video_file_is_read_at_one_frame_a_second(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), i * 6, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = [round(np.array(frame).mean() / 6) for frame in video_frames(tmp_path / "v.mp4")]
    assert shown == [4, 12, 19, 27, 35]
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(ValueError, match="expected a video file"):
        list(video_frames(tmp_path / "bad.mp4"))
