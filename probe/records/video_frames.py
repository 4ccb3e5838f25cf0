"""How much attention each frame of a video receives.

    frames = frame_attention(record, query_type="response")       # (layer, frame), with `time`

The attention on a frame is the sum over its tokens. A token that shows several frames (Qwen-VL
joins two) counts as the first of them, so that the frames between have no entry.
"""

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.records.frames import node


def frame_attention(
    record: xr.DataTree,
    sample: int = 0,
    query_type: str = "response",
    stack: str = "llm",
    video: int = 0,
) -> xr.DataArray:
    """The mean attention of a query of one type to each frame: (layer, frame), a fraction, with the
    coordinates `time` (seconds) and `image` (the number of the frame among the sample's images).

    sample: its index. video: which of the sample's videos, from 0. Raises ProbeError for a stack
    without tokens of frames, and for a video that there is not.
    """
    measured = node(record, stack)
    if "key_frame" not in measured or "received" not in measured:
        raise ProbeError(
            "frames",
            expected=f"a record of a video, with tokens of its frames in {stack!r}",
            got="one without",
            fix="measure a Video",
        )
    keys = measured.isel(sample=sample)
    frame = keys["key_frame"].values
    image = keys["key_image"].values
    starts = np.unique((image - frame)[frame >= 0])  # the first image of each video
    if not 0 <= video < len(starts):
        expected = f"a number below {len(starts)}, as many videos as the sample has"
        raise ProbeError("frames", expected=expected, got=str(video))
    own = (frame >= 0) & (image - frame == starts[video])
    received = keys["received"].sel(query_type=query_type).values[:, own]
    numbers, place = np.unique(frame[own], return_inverse=True)
    of_frames = [received[:, place == number].sum(axis=1) for number in range(len(numbers))]
    values = np.stack(of_frames, axis=1)
    times = np.zeros(len(numbers))
    times[place] = keys["key_time"].values[own]
    coords = {
        "layer": measured["layer"].values,
        "frame": numbers,
        "time": ("frame", times),
        "image": ("frame", numbers + starts[video]),
    }
    attrs = {"long_name": "attention on the frame, head mean", "units": "fraction"}
    return xr.DataArray(values, coords, ("layer", "frame"), attrs=attrs)
