"""Video of other colours than sRGB's, as a usual screen shows it: HDR (PQ and HLG), BT.2020 and Display P3.

All colours are mapped by one table for each kind of video, which libav's filter `haldclut` looks up. Light up to 0.6
of reference white (203 cd/m2), which is sRGB 203, stays what it is. What is brighter is compressed, up to 1000 cd/m2,
by one factor for all three colours, so that the hue stays.

Letters: c = 3 colours (RGB).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Numbers of ITU-T H.273: how code values become light, and what red, green and blue are.
PQ, HLG = 16, 18
BT709, BT2020, DISPLAY_P3 = 1, 9, 12
_CHROMATICITIES = {  # x and y of red, green, blue; the white of all of them is D65
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_WHITE = (0.3127, 0.3290)
_REFERENCE_WHITE = 203.0  # cd/m2
_PEAK = 1000.0 / _REFERENCE_WHITE  # of the display for which HLG is defined and most PQ is graded
_KNEE = 0.6
_POINTS = 64  # of the table, in each direction
_WHITE_16 = 255 * 256  # what libav's scaler makes of white in 16 bits, and takes for white


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether the values of such a video are other colours than the same values in sRGB."""
    return transfer in (PQ, HLG) or primaries in (BT2020, DISPLAY_P3)


def to_srgb(frame: Any, transfer: int, primaries: int) -> Any:
    """A frame as a screen of sRGB shows it.

    Args:
        frame: an av.VideoFrame of 16-bit RGB (rgb48le), values as they are coded.
        transfer, primaries: of the video, as numbers of H.273.

    Returns:
        An av.VideoFrame of 16-bit RGB.
    """
    table = av.VideoFrame.from_ndarray(_table(transfer, primaries), format="rgb48le")
    graph = av.filter.Graph()
    lookup, result = graph.add("haldclut"), graph.add("buffersink")
    sources = []
    for number, picture in enumerate((frame, table)):
        size = {"width": picture.width, "height": picture.height}
        sources.append(graph.add_buffer(format=picture.format, time_base=Fraction(1), **size))
        sources[number].link_to(lookup, 0, number)
    lookup.link_to(result)
    graph.configure()
    for source, picture in zip(sources, (frame, table), strict=True):
        picture.pts = 0
        source.push(picture)
        source.push(None)
    return result.pull()


@lru_cache
def _table(transfer: int, primaries: int) -> NDArray[np.uint16]:
    """All colours in a square, as the filter wants it: red runs fastest, blue slowest."""
    steps = np.minimum(np.linspace(0.0, 65535 / _WHITE_16, _POINTS), 1.0)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = srgb_values(np.stack([red, green, blue], axis=-1), transfer, primaries)
    side = round(_POINTS**1.5)
    return np.round(colours * _WHITE_16).astype(np.uint16).reshape(side, side, 3)


def srgb_values(coded: Values, transfer: int, primaries: int) -> Values:
    """What a screen of sRGB shows for the values of a video.

    Args:
        coded: [..., c], in [0, 1].
        transfer, primaries: as numbers of H.273; HDR that doesn't say its primaries is BT.2020.

    Returns:
        [..., c], in [0, 1].

    Source: BT.2100 (PQ, HLG), BT.2408 (reference white), BT.1886 (standard range), IEC 61966-2-1 (sRGB).
    """
    to_bt709 = np.linalg.inv(_to_xyz(BT709)) @ _to_xyz(primaries)
    if transfer not in (PQ, HLG):  # standard range keeps its curve
        return np.clip(coded**2.4 @ to_bt709.T, 0.0, 1.0) ** (1 / 2.4)
    light = _light_of_pq(coded) if transfer == PQ else _light_of_hlg(coded)
    light = np.maximum(light @ to_bt709.T, 0.0)
    brightest = light.max(axis=-1, keepdims=True)
    light = np.clip(light * _compressed(brightest) / np.maximum(brightest, 1e-9), 0.0, 1.0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _light_of_pq(coded: Values) -> Values:
    """In units of reference white."""
    m1, m2 = 2610 / 16384, 2523 / 32
    c1, c2, c3 = 107 / 128, 2413 / 128, 2392 / 128
    power = coded ** (1 / m2)
    return 10_000 / _REFERENCE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _light_of_hlg(coded: Values) -> Values:
    """In units of reference white, on the display of 1000 cd/m2."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return _PEAK * scene * luminance[..., None] ** 0.2


def _compressed(light: Values) -> Values:
    """The same up to the knee; from there a curve without a corner, which reaches 1 at the peak."""
    above = np.maximum(light - _KNEE, 0.0)
    return np.minimum(light, _KNEE) + np.minimum(
        above / (1 + above * (1 / (1 - _KNEE) - 1 / (_PEAK - _KNEE))), 1 - _KNEE
    )


def _to_xyz(primaries: int) -> Values:
    """[3, c]: light of these primaries as CIE XYZ, in which white has Y = 1."""
    x, y = np.array(_CHROMATICITIES.get(primaries, _CHROMATICITIES[BT2020])).T
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    white = np.array([_WHITE[0] / _WHITE[1], 1.0, (1 - sum(_WHITE)) / _WHITE[1]])
    matrix: Values = columns * np.linalg.solve(columns, white)
    return matrix
