"""Generated street scenes in Cityscapes' layout: the data of the quickstart, with no download.

A scene is a small world in metres (x right, y up, z forward, the camera at x = 0, z = 0), painted
far to near. Every call of `paint` gets a number and is painted ONCE, into one canvas of numbers at
twice the size; colour, texture and label are looked up from the number afterwards, so picture and
mask cannot disagree. Letters: H, W are the picture's size, M polygons have N corners each.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

FORMAT_VERSION = 1  # raise it whenever a seed draws other pixels than before
MIN_SIDE = 32  # what models and data.size start at
PICTURES_PER_PROCESS = 16  # fewer than this are drawn sooner than a process starts

UNLABELED, EGO, STATIC, DYNAMIC = 0, 1, 4, 5
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE = 7, 8, 11, 12, 13, 17
LIGHT, SIGN, VEGETATION, TERRAIN, SKY = 19, 20, 21, 22, 23
PERSON, RIDER, CAR, TRUCK, BUS, BICYCLE = 24, 25, 26, 27, 28, 33

_STEMS = ("al", "bre", "cor", "dun", "el", "fen", "gar", "hol", "is", "jor", "kel", "lun", "mar")
_ENDINGS = ("moor", "ford", "wick", "stad", "beck", "vale", "haven", "burg", "lund", "mere")
MOST_CITIES = len(_STEMS) * len(_ENDINGS) // 2  # of a split

Rgb = tuple[float, float, float]
Floats = NDArray[np.float64]
Wanted = dict[str, Any]  # the contents of scenes.json
Thing = tuple[float, Callable[[], None]]  # the distance that orders it, and how to paint it


@dataclass(frozen=True)
class CityStyle:
    """What the pictures of one city share. Colours are sRGB in 0..1, lengths are metres."""

    facades: tuple[Rgb, ...]
    foliage: tuple[Rgb, ...]
    asphalt: Rgb
    pavement: Rgb
    terrain: Rgb
    metal: Rgb  # of lamp posts, and what carries signs
    lane: float  # width of a lane
    walk: float  # width of the pavement
    floors: float  # mean height of the houses, in storeys
    window: tuple[float, float]  # width and height of a window, as a share of its cell
    built: float  # share of the street front that is built up
    trees: float  # how many along a side of the street, here and in the three below
    parked: float
    masts: float
    people: float
    headway: float  # mean distance between vehicles in a lane
    exposure: float  # in stops
    sun: float  # 0 overcast .. 1 hard shadows
    warmth: float  # white balance: < 0 blue, > 0 yellow
    visibility: float  # distance at which haze has swallowed 63 % of the contrast


def city_style(seed: int, city: int) -> CityStyle:
    """The style of city number `city` (0, 1, ...), drawn from `seed` alone."""
    rng = np.random.default_rng([seed, city])
    leaf = rng.uniform(0.15, 0.36)  # autumn yellow .. deep green
    wall = rng.uniform(0.02, 0.16) if rng.random() < 0.75 else rng.uniform(0.3, 0.65)
    ground = rng.uniform(0.06, 0.14) if rng.random() < 0.7 else rng.uniform(0.5, 0.7)
    grey = rng.uniform(0.28, 0.5)
    return CityStyle(
        facades=tuple(_hsv(rng, wall, 0.05, (0.04, 0.45), (0.3, 0.95)) for _ in range(6)),
        foliage=tuple(_hsv(rng, leaf, 0.04, (0.3, 0.65), (0.16, 0.5)) for _ in range(4)),
        asphalt=_hsv(rng, ground, 0.02, (0.0, 0.12), (grey, grey + 0.04)),
        pavement=_hsv(rng, ground, 0.05, (0.02, 0.22), (grey - 0.04, grey + 0.3)),
        terrain=_hsv(rng, leaf, 0.06, (0.15, 0.5), (0.25, 0.5)),
        metal=_hsv(
            rng, 0.55, 0.1, (0.0, 0.25), (0.62, 0.92) if rng.random() < 0.7 else (0.06, 0.2)
        ),
        lane=rng.uniform(2.9, 3.7),
        walk=rng.uniform(2.2, 5.0),
        floors=rng.uniform(2.0, 5.5),
        window=(rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.75)),
        built=rng.uniform(0.5, 0.9),
        trees=rng.uniform(1.5, 6.0),
        parked=rng.uniform(1.0, 5.5),
        masts=rng.uniform(4.0, 6.5),
        people=rng.uniform(5.0, 12.0),
        headway=rng.uniform(25.0, 60.0),
        exposure=rng.uniform(-0.3, 0.5),
        sun=rng.uniform(0.0, 1.0),
        warmth=rng.uniform(-0.1, 0.14),
        visibility=math.exp(rng.uniform(math.log(130.0), math.log(700.0))),
    )


def draw_scene(
    rng: np.random.Generator, city: CityStyle, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One street scene: image (H, W, 3) in sRGB and Cityscapes label ids (H, W).

    Raises ValueError for a side below MIN_SIDE pixels.
    """
    if min(size) < MIN_SIDE:
        raise ValueError(f"expected sides of at least {MIN_SIDE} px, got {size=}; ask for larger")
    s = _Scene(rng, city, size)
    _paint_ground(s)
    _paint_skyline(s)
    things = [*_houses(s), *_kerbside(s), *_traffic(s)]
    for _, paint in sorted(things, key=lambda thing: -thing[0]):
        paint()
    _paint_bonnet(s)
    return s.develop()


class _Scene:
    """One picture in the making: the street's plan, the camera, the light, what was painted."""

    def __init__(self, rng: np.random.Generator, city: CityStyle, size: tuple[int, int]) -> None:
        self.rng, self.city, self.size = rng, city, size
        height, width = 2 * size[0], 2 * size[1]
        self.focal = math.sqrt(2 * height * width) * rng.uniform(0.42, 0.52)
        self.centre = (width * rng.uniform(0.4, 0.6), height * rng.uniform(0.38, 0.52))
        self.roll = rng.normal(0.0, 0.018)
        self.bend = rng.normal(0.0, 4e-4)  # the street's curvature, 1/m
        self.eye = rng.uniform(1.25, 1.9)
        self.sun = min(1.0, max(0.0, city.sun + rng.normal(0.0, 0.2)))
        self.sun_side = 1 if rng.random() < 0.5 else -1
        self.visibility = city.visibility * math.exp(rng.normal(0.0, 0.3))
        self.haze = np.array([0.62, 0.66, 0.7]) * rng.uniform(0.7, 1.2)
        # how bright a surface is that faces left (-1), the camera (0), right (1)
        self.light = {s: 1.0 + self.sun * (0.35 if s == self.sun_side else -0.4) for s in (-1, 1)}
        self.light[0] = 1.0 - 0.3 * self.sun * rng.random()
        # the camera drives in the right one of two lanes; parked cars stand between lane and kerb
        self.kerb = {-1: -1.5 * city.lane - 2.2, 1: 0.5 * city.lane + 2.2}
        self.front = {side: self.kerb[side] + side * city.walk for side in (-1, 1)}
        start = rng.uniform(12.0, 90.0)
        self.crossing = (start, start + rng.uniform(7.0, 12.0))
        # polygons (M, N, 3) and, a row each, their sRGB colour, light, grain and label
        self._polygons: list[Floats] = []
        self._rows: list[tuple[float, ...]] = []
        self._shadows: list[tuple[Floats, int]] = []  # (N, 3) and how dark, 0..255

    def crossed(self, z: float, reach: float = 0.0) -> bool:
        """Whether something from z to z + reach stands on the side street."""
        return self.crossing[0] < z + reach and z < self.crossing[1]

    def paint(
        self, world: Floats, colour: Rgb, label: int, light: float = 1.0, grain: float = 0.06
    ) -> None:
        """Paint polygons (N, 3) or (M, N, 3), all of one colour (sRGB, times light) and label."""
        if world.size:
            self._polygons.append(world.reshape(-1, *world.shape[-2:]))
            self._rows.append((*colour, light, grain, label))

    def across(self, shape: ArrayLike, x: float, z: float, *look: Any, **more: Any) -> None:
        """Paint shapes (..., N, 2) of a plane that faces the camera; their origin is (x, 0, z)."""
        self.paint(_place(shape, (0, 1), (x, 0.0, z)), *look, **more)

    def along(self, shape: ArrayLike, x: float, z: float, *look: Any, **more: Any) -> None:
        """The same in a plane that runs along the street: the first coordinate becomes z."""
        self.paint(_place(shape, (2, 1), (x, 0.0, z)), *look, **more)

    def floor(self, shape: ArrayLike, *look: Any, **more: Any) -> None:
        """Paint shapes (..., N, 2) of the ground, given as (x, z)."""
        self.paint(_place(shape, (0, 2), (0.0, 0.0, 0.0)), *look, **more)

    def cast(self, x: float, z: float, width: float, length: float, height: float) -> None:
        """The shadow on the ground of a box: a long one from the sun, and contact shade."""
        for reach, dark in ((-self.sun_side * height * 1.2, 0.55 * self.sun), (0.0, 0.7)):
            left, right = x - width / 2 + min(0.0, reach), x + width / 2 + max(0.0, reach)
            spot = _ring(12) * ((right - left) / 1.9, length / 1.8 + 0.1)
            world = _place(spot, (0, 2), ((left + right) / 2, 0.0, z + length / 2))
            self._shadows.append((world, int(255 * dark)))

    def develop(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The photograph (H, W, 3) and its labels (H, W): look every number up, light, expose."""
        h, w = self.size
        rows, label_of = self._materials()
        ids = np.asarray(self._plot("I", self._polygons, range(1, len(rows))))
        labels = _vote(ids, label_of)
        # (2H, 2W, 6) -> (H, 2, W, 2, 6) -> (H, W, 6)
        four = rows[ids].reshape(h, 2, w, 2, 6)
        mean = (four[:, 0, :, 0] + four[:, 0, :, 1] + four[:, 1, :, 0] + four[:, 1, :, 1]) / 4
        texture = mean[..., 3] * _noise(self.rng, self.size, 1.6)
        texture += mean[..., 4] * _noise(self.rng, self.size, h / 14)
        rgb = mean[..., :3] * np.exp(texture)[..., None] + mean[..., 5:] * _sky(self)
        spots = self._plot("L", [p for p, _ in self._shadows], [d for _, d in self._shadows])
        shade = np.asarray(spots.reduce(2), dtype=np.float32) / 255.0
        rgb *= (1.0 - shade * np.isin(labels, (ROAD, SIDEWALK, TERRAIN)))[..., None]
        return _expose(self.rng, self.city, rgb), labels

    def _project(self, world: Floats) -> Floats:
        """World points (P, 3) in metres to points (P, 2) in pixels of the canvas."""
        x, y, z = world.T
        z = np.maximum(z, 0.7)  # what lies behind the camera is pulled before it
        u, v = self.focal * (x / z + self.bend * z), self.focal * (self.eye - y) / z
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        flat = np.stack([self.centre[0] + u * cos - v * sin, self.centre[1] + u * sin + v * cos], 1)
        return np.asarray(np.clip(flat, -1e4, 1e4))

    def _plot(self, mode: str, shapes: list[Floats], fills: Sequence[int]) -> Image.Image:
        """The shapes (..., N, 3) in perspective, one fill each, on a canvas (2H, 2W) of zeros."""
        image = Image.new(mode, (2 * self.size[1], 2 * self.size[0]), 0)
        draw = ImageDraw.Draw(image)
        # all points at once: thousands of small projections would cost more than the painting
        world = np.concatenate([np.empty((0, 3)), *(shape.reshape(-1, 3) for shape in shapes)])
        flat, start = self._project(world).ravel().tolist(), 0
        for shape, fill in zip(shapes, fills, strict=True):
            stop, step = start + shape.size // 3 * 2, 2 * shape.shape[-2]
            for first in range(start, stop, step):
                draw.polygon(flat[first : first + step], fill=fill)
            start = stop
        return image

    def _materials(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """By number, 0 being the sky: (linear r, g, b, fine and coarse grain, sky), and label."""
        rows = np.array(self._rows)
        depth = np.array([max(0.7, p[..., 2].mean()) for p in self._polygons])
        clear = np.exp(-depth / self.visibility)[:, None]
        rgb = rows[:, :3] ** 2.2 * rows[:, 3:4] * clear + self.haze * (1.0 - clear)
        grain = rows[:, 4:5] * clear
        table = np.hstack([rgb, grain, grain, np.zeros_like(grain)])
        table = np.vstack([[0, 0, 0, 0, 0, 1], table]).astype(np.float32)
        return table, np.array([SKY, *rows[:, 5]], dtype=np.uint8)


def _vote(ids: NDArray[np.int32], label_of: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels (H, W) from numbers (2H, 2W): most of the 2 x 2 wins, the nearer thing on a tie."""
    four = np.stack([ids[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    labels = label_of[four]
    votes = sum((labels == labels[i]).astype(np.int32) for i in range(4))
    winner = np.argmax(votes * len(label_of) + four, axis=0)  # a later number lies nearer
    return np.asarray(np.take_along_axis(labels, winner[None], axis=0)[0])


def _noise(rng: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Smooth noise (H, W) of about unit spread whose blobs are `scale` pixels wide."""
    h, w = (max(2, math.ceil(side / scale)) for side in size)
    small = Image.fromarray(rng.standard_normal((h, w), dtype=np.float32))
    return np.asarray(small.resize((size[1], size[0]), Image.Resampling.BICUBIC)) * np.float32(1.3)


def _sky(s: _Scene) -> NDArray[np.float32]:
    """Linear sky colours (H, W, 3): blue to pale down to the horizon, with clouds."""
    rng, height = s.rng, s.size[0]
    zenith = np.array([0.12, 0.25, 0.55]) * rng.uniform(0.6, 1.4)
    zenith += (0.55 - zenith) * rng.uniform(0.0, 1.0)  # towards overcast
    fall = np.linspace(0.0, 2 * height / s.centre[1], height)
    mix = np.clip(fall, 0.0, 1.0)[:, None, None] ** rng.uniform(0.7, 2.0)
    cloud = 0.6 * _noise(rng, s.size, height / 4) + 0.3 * _noise(rng, s.size, height / 12)
    cover = np.clip(cloud + rng.uniform(-0.8, 0.6), 0.0, 1.0)[..., None] * 0.8
    clear = zenith * (1.0 - mix) + s.haze * 1.1 * mix
    return np.asarray(clear * (1.0 - cover) + rng.uniform(0.45, 0.95) * cover, dtype=np.float32)


def _expose(
    rng: np.random.Generator, city: CityStyle, rgb: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Linear light (H, W, 3) to an sRGB photograph: lens blur, exposure, tint, sensor noise."""
    blur = np.float32(rng.uniform(0.05, 0.2))
    pad = np.pad(rgb, ((1, 1), (0, 0), (0, 0)), mode="edge")
    rgb = rgb * (1 - 2 * blur) + blur * (pad[:-2] + pad[2:])
    pad = np.pad(rgb, ((0, 0), (1, 1), (0, 0)), mode="edge")
    rgb = rgb * (1 - 2 * blur) + blur * (pad[:, :-2] + pad[:, 2:])
    warmth = city.warmth + rng.normal(0.0, 0.05)
    gain = 2.0 ** (city.exposure + rng.normal(0.0, 0.3))
    rgb *= np.array([1.0 + warmth, 1.0, 1.0 - warmth], dtype=np.float32) * np.float32(gain)
    noise = rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(rng.uniform(0.008, 0.025))
    rgb += noise * np.sqrt(rgb + 0.02)
    return np.asarray(255.0 * np.clip(rgb, 0.0, 1.0) ** (1 / 2.2) + 0.5, dtype=np.uint8)


def _hsv(
    rng: np.random.Generator,
    hue: float,
    spread: float,
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Rgb:
    """A random colour about one hue (0..1), its saturation and value from two ranges."""
    turned = (hue + rng.normal(0.0, spread)) % 1.0
    return colorsys.hsv_to_rgb(turned, rng.uniform(*saturation), rng.uniform(*value))


def _any_colour(rng: np.random.Generator, grey: float = 0.5) -> Rgb:
    """Paint or cloth: with chance `grey` black, white or between, else any hue."""
    if rng.random() < grey:
        return _hsv(rng, rng.random(), 0.0, (0.0, 0.12), (0.08, 0.9))
    return _hsv(rng, rng.random(), 0.0, (0.2, 0.85), (0.15, 0.85))


def _pick(rng: np.random.Generator, palette: Sequence[Rgb], spread: float = 0.06) -> Rgb:
    """One colour of a palette, a little lighter or darker than it is written."""
    return _times(palette[int(rng.integers(len(palette)))], math.exp(rng.normal(0.0, spread)))


def _times(colour: Rgb, factor: float) -> Rgb:
    r, g, b = colour
    return (min(1.0, r * factor), min(1.0, g * factor), min(1.0, b * factor))


@cache
def _ring(corners: int) -> Floats:
    """The unit circle as a polygon (N, 2)."""
    angle = np.linspace(0.0, 2 * math.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _blobs(rng: np.random.Generator, count: int, width: float, height: float, y: float) -> Floats:
    """Lumpy discs (count, 14, 2) that fill an ellipse of these half axes about (0, y)."""
    offset = rng.uniform(-0.6, 0.6, (count, 1, 2))
    lumps = rng.uniform(0.35, 0.6, (count, 14, 1))
    return np.add((offset + _ring(14) * lumps) * (width, height), (0.0, y))


def _rects(left: ArrayLike, right: ArrayLike, low: ArrayLike, high: ArrayLike) -> Floats:
    """Rectangles (4, 2), or (..., 4, 2) where an edge is an array."""
    out = np.empty((*np.broadcast_shapes(*map(np.shape, (left, right, low, high))), 4, 2))
    out[..., 0, 0] = out[..., 3, 0] = left
    out[..., 1, 0] = out[..., 2, 0] = right
    out[..., 0, 1] = out[..., 1, 1] = low
    out[..., 2, 1] = out[..., 3, 1] = high
    return out


def _place(shape: ArrayLike, axes: tuple[int, int], origin: tuple[float, float, float]) -> Floats:
    """Flat points (..., 2) to world points (..., 3) whose coordinates they are along `axes`."""
    flat = np.asarray(shape, dtype=np.float64)
    out = np.empty((*flat.shape[:-1], 3))
    out[...] = origin
    out[..., axes[0]] += flat[..., 0]
    out[..., axes[1]] += flat[..., 1]
    return out


def _paint_ground(s: _Scene) -> None:
    """Road, markings, patches, kerbs, pavements, verges, yards: slice by slice, for the haze."""
    rng, city, left, right = s.rng, s.city, s.kerb[-1], s.kerb[1]
    edges = np.unique([*np.geomspace(0.9, 400.0, 18), *s.crossing])
    slices = [(a, b) for a, b in pairwise(edges) if not s.crossed((a + b) / 2)]

    def strip(x0: float, x1: float, colour: Rgb, label: int, light: float = 1.0) -> None:
        for near, far in slices:
            s.floor(_rects(x0, x1, near, far), colour, label, light)

    strip(-300.0, 300.0, city.terrain, TERRAIN)
    for side in (-1, 1):
        kerb = s.kerb[side]
        strip(kerb, s.front[side], city.pavement, SIDEWALK)
        strip(kerb, kerb + side * 0.2, city.pavement, SIDEWALK, 1.25)
        if rng.random() < 0.35:
            strip(kerb + side * 0.2, kerb + side * 1.4, city.terrain, TERRAIN)
    strip(left, right, city.asphalt, ROAD)
    s.floor(_rects(-300.0, 300.0, *s.crossing), city.asphalt, ROAD)
    for _ in range(int(rng.integers(4, 12))):  # mended asphalt, oil, manholes, puddles
        spot = _ring(7) * rng.uniform(0.3, 1.6, (7, 1)) * (0.7, 1.5)
        spot += (rng.uniform(left, right), rng.uniform(3.0, 40.0))
        spot[:, 0] = np.clip(spot[:, 0], left, right)
        s.floor(spot, _pick(rng, (city.asphalt,), 0.15), ROAD)
    white = _hsv(rng, 0.13, 0.02, (0.0, 0.15), (0.55, 0.85))
    dashes = np.arange(rng.uniform(1.0, 6.0), 90.0, rng.uniform(6.0, 10.0))
    dashes = dashes[(dashes > s.crossing[1]) | (dashes < s.crossing[0] - 8.0)]
    for x in (-city.lane / 2, city.lane / 2, -1.5 * city.lane):
        s.floor(_rects(x - 0.07, x + 0.07, dashes, dashes + 3.0), white, ROAD)
    if rng.random() < 0.6:  # a zebra before the side street
        bars, z = np.arange(left + 0.3, right - 0.5, 1.0), s.crossing[0] - 4.0
        s.floor(_rects(bars, bars + 0.5, z, z + 3.0), white, ROAD)


def _paint_skyline(s: _Scene) -> None:
    """What closes the street far away: blocks and trees, some of them nobody could label."""
    for z in (260.0, 220.0):
        x = -220.0
        while x < 220.0:
            width, draw = s.rng.uniform(8.0, 30.0), s.rng.random()
            height = 3.2 * s.city.floors * s.rng.uniform(0.3, 1.3)
            if draw < 0.45:
                colour = _pick(s.rng, s.city.facades)
                s.across(_rects(0, width, 0, height), x, z, colour, BUILDING)
            else:
                crown = _blobs(s.rng, 4, width / 2, height / 2, height / 3)
                label = VEGETATION if draw < 0.9 else UNLABELED
                s.across(crown, x, z, _pick(s.rng, s.city.foliage), label)
            x += width * 0.8


def _houses(s: _Scene) -> Iterator[Thing]:
    """House after house along both sides, with gaps for gardens and the side street."""
    for side in (-1, 1):
        near = s.rng.uniform(1.0, 4.0)
        while near < 200.0:
            far = near + s.rng.uniform(8.0, 24.0)
            if s.crossed(near, far - near):
                if s.crossing[0] - near < 5.0:
                    near = s.crossing[1] + 0.5
                    continue
                far = s.crossing[0] - 0.5
            kind = _house if s.rng.random() < s.city.built else _garden
            x = s.front[side] + side * float(s.rng.choice([0.0, 0.0, 1.5]))
            yield far, partial(kind, s, side, x, near, far)
            near = far


def _house(s: _Scene, side: int, x: float, near: float, far: float) -> None:
    """A facade along the street, the end wall that faces the camera, a roof, windows, a shop."""
    rng, lit, length = s.rng, s.light[-side], far - near
    storey, colour = rng.uniform(2.8, 3.6), _pick(rng, s.city.facades)
    high = storey * max(1.0, round(s.city.floors * math.exp(rng.normal(0.0, 0.35))))
    deep, ridge = side * rng.uniform(8.0, 14.0), high + rng.uniform(1.5, 4.0) * (rng.random() < 0.6)
    tiles = _hsv(rng, float(rng.choice([0.03, 0.6])), 0.02, (0.05, 0.5), (0.2, 0.5))
    eaves, top = (x, x + deep / 2), (high, ridge)
    roof = [(eaves[i], top[i], z) for i, z in ((0, near), (0, far), (1, far), (1, near))]
    s.paint(np.array(roof), tiles, BUILDING, lit)
    gable = [(0, 0), (deep, 0), (deep, high), (deep / 2, ridge), (0, high)]
    s.across(gable, x, near, colour, BUILDING, s.light[0])
    s.along(_rects(0, length, 0, high), x, near, colour, BUILDING, lit)
    cornice = _times(colour, rng.uniform(0.7, 1.1))
    s.along(_rects(0, length, high - 0.4, high), x, near, cornice, BUILDING, lit)
    if near < 70.0:  # further off they would be smaller than a pixel
        _windows(s, s.along, x, near, length, high, storey)
        _windows(s, s.across, x, near, deep, high, storey)
    if rng.random() < 0.5:
        shop = _rects(0.3, length - 0.3, 0.2, storey - 0.3)
        s.along(shop, x, near, _pick(rng, s.city.facades, 0.15), BUILDING, lit, 0.12)
        awning = [(x, storey, near), (x, storey, far), (x - side, storey - 0.6, far)]
        awning.append((x - side, storey - 0.6, near))
        s.paint(np.array(awning), _any_colour(rng), BUILDING, lit)


def _windows(
    s: _Scene,
    plane: Callable[..., None],
    x: float,
    z: float,
    span: float,
    high: float,
    storey: float,
) -> None:
    """A grid of windows in a wall: dark ones, and others that mirror the sky or are lit."""
    columns = max(1, int(abs(span) / s.rng.uniform(1.8, 3.2)))
    pitch, (wide, tall) = span / columns, s.city.window
    column, row = np.meshgrid(np.arange(columns) + 0.5, np.arange(round(high / storey)) + 0.25)
    left, low = (column - wide / 2) * pitch, row * storey
    cells = _rects(left, left + wide * pitch, low, low + tall * storey)
    bright = s.rng.random(column.shape) < s.rng.uniform(0.1, 0.6)
    glass = _hsv(s.rng, 0.58, 0.04, (0.05, 0.3), (0.12, 0.35))
    plane(cells[~bright], x, z, glass, BUILDING, grain=0.12)
    plane(cells[bright], x, z, _hsv(s.rng, 0.58, 0.08, (0.0, 0.3), (0.4, 0.9)), BUILDING)


def _garden(s: _Scene, side: int, x: float, near: float, far: float) -> None:
    """A gap in the row: trees behind a wall, a fence or a hedge."""
    rng, lit, length = s.rng, s.light[-side], far - near
    for z in np.sort(rng.uniform(near, far, 3))[::-1].tolist():
        _tree(s, x + side * rng.uniform(2.0, 9.0), z)
    kind, high = rng.random(), rng.uniform(0.8, 2.2)
    panel = _rects(0.0, length, 0.0, high)
    if kind < 0.35:
        colour = _pick(rng, s.city.facades)
        s.across(_rects(0, side * 8.0, 0, high), x, near, colour, WALL, s.light[0])
        s.along(panel, x, near, colour, WALL, lit, 0.1)
    elif kind < 0.7:
        colour, slats = _any_colour(rng), np.arange(0.0, length - 0.3, 0.8)
        s.along(panel, x, near, colour, FENCE, lit)
        s.along(_rects(slats, slats + 0.3, 0.0, high), x, near, _times(colour, 0.6), FENCE, lit)
    else:
        s.along(panel, x, near, _pick(rng, s.city.foliage), VEGETATION, lit, 0.2)


def _tree(s: _Scene, x: float, z: float) -> None:
    """A trunk and a crown of lumps, the sunny ones last."""
    high, leaf = s.rng.uniform(3.5, 10.0), _pick(s.rng, s.city.foliage)
    wide, trunk = high * s.rng.uniform(0.2, 0.36), s.rng.uniform(0.1, 0.22)
    s.cast(x, z, high / 3, high / 3, high * 0.7)
    bark = _hsv(s.rng, 0.08, 0.02, (0.1, 0.4), (0.15, 0.4))
    s.across(_rects(-trunk, trunk, 0.0, high * 0.6), x, z, bark, VEGETATION)
    for light, shift in ((0.6, -0.08), (0.85, 0.0), (1.15, 0.08)):
        lumps = _blobs(s.rng, 6, wide, high * 0.33, high * (0.7 + shift / 2))
        s.across(lumps, x + s.sun_side * shift * high, z, leaf, VEGETATION, light, 0.2)


def _kerbside(s: _Scene) -> Iterator[Thing]:
    """All that stands on the pavements and at the kerb, and who walks there."""
    city = s.city
    # how many a side, from what distance to what, how far behind the kerb
    kinds = (
        (city.trees, (5.0, 150.0), (0.8, 1.6), _tree),
        (city.masts, (6.0, 32.0), (0.5, 0.9), _mast),
        (1.5, (4.5, 40.0), (0.6, city.walk - 0.3), _clutter),
        (city.people, (4.5, 15.0), (0.3, city.walk), _person),
        (city.parked, (4.5, 70.0), (-1.1, -1.0), _car),
    )
    for side in (-1, 1):
        for count, (near, far), behind, kind in kinds:
            # log-uniform, so that a picture holds near ones and far ones alike
            for z in (near * (far / near) ** s.rng.random(s.rng.poisson(count))).tolist():
                x = s.kerb[side] + side * s.rng.uniform(*behind)
                if not s.crossed(z - 1.0, 6.0):
                    yield z, partial(kind, s, x, z)


def _traffic(s: _Scene) -> Iterator[Thing]:
    """Vehicles in both lanes, riders beside them, people who cross."""
    rng = s.rng
    for lane in (-1, 0):
        z = rng.uniform(7.0, 30.0)
        while z < 120.0:
            kind = _car if rng.random() < 0.8 else _lorry
            yield z, partial(kind, s, lane * s.city.lane + rng.normal(0.0, 0.2), z)
            z += 12.0 + rng.exponential(s.city.headway)
    for _ in range(rng.poisson(2.0)):
        z, x = rng.uniform(5.0, 30.0), rng.choice([s.kerb[-1] + 2.6, s.kerb[1] - 2.6])
        yield z, partial(_rider, s, float(x), z)
    for _ in range(rng.poisson(0.3 * s.city.people)):
        z = s.crossing[0] - rng.uniform(1.2, 3.5)
        yield z, partial(_person, s, rng.uniform(s.kerb[-1], s.kerb[1]), z)


def _mast(s: _Scene, x: float, z: float) -> None:
    """A street lamp, a traffic light or a sign on its pole."""
    rng, kind, half = s.rng, s.rng.random(), s.rng.uniform(0.12, 0.2)
    high = rng.uniform(5.0, 8.5) if kind < 0.35 else rng.uniform(2.6, 3.6)
    s.cast(x, z, 0.3, 0.3, high)
    metal = _pick(rng, (s.city.metal,))
    s.across(_rects(-half, half, 0.0, high), x, z, metal, POLE)
    dim = half * s.sun_side  # the half of the tube that the sun does not reach
    s.across(_rects(-dim, -dim / 4, 0.0, high), x, z, _times(metal, 0.6), POLE)
    if kind < 0.35:
        tip = -math.copysign(1.8, x)  # over the road
        arm = [(0, high), (tip, high + 0.4), (tip, high + 0.15), (0, high - 0.25)]
        s.across(arm, x, z, metal, POLE)
    elif kind < 0.65:
        s.across(_rects(-0.32, 0.32, high - 1.2, high), x, z, (0.1, 0.1, 0.1), LIGHT)
        lit = int(rng.integers(3))
        lamp = _ring(8) * 0.16 + np.array([0.0, high - 0.9 + 0.33 * lit])
        s.across(lamp, x, z, ((0.1, 0.9, 0.5), (1, 0.7, 0.1), (1, 0.15, 0.1))[lit], LIGHT, 1.5)
    else:
        plate = _ring(int(rng.choice([3, 4, 12])))[:, ::-1]
        vivid = _hsv(rng, float(rng.choice([0.0, 0.6])), 0.01, (0.7, 0.95), (0.5, 0.9))
        for scale, colour in ((0.6, vivid), (0.36, (0.85, 0.85, 0.85))):
            s.across(plate * scale + np.array([0.0, high]), x, z, colour, SIGN)


def _clutter(s: _Scene, x: float, z: float) -> None:
    """A bin or a box (static), or a trolley or a dog (dynamic)."""
    side, colour = -int(math.copysign(1, x)), _any_colour(s.rng)
    half, high = s.rng.uniform(0.3, 0.7), s.rng.uniform(0.5, 1.4)
    s.cast(x, z, 2 * half, half, high)
    if s.rng.random() < 0.3:
        s.across(_blobs(s.rng, 4, half, high / 2.2, high / 2), x, z, colour, DYNAMIC)
        return
    s.along(_rects(0, 0.8, 0, high), x + side * half, z, colour, STATIC, s.light[side])
    s.across(_rects(-half, half, 0, high), x, z, colour, STATIC, s.light[0])
    s.across(_rects(-half, half, high * 0.85, high), x, z, _times(colour, 0.6), STATIC)


def _person(s: _Scene, x: float, z: float) -> None:
    """Someone on foot, child or grown."""
    tall = s.rng.uniform(1.4, 2.0)
    s.cast(x, z - 0.2, 0.5, 0.4, tall)
    _body(s, x, z, PERSON, tall, s.rng.uniform(0.0, 0.26), 0.0)


def _body(
    s: _Scene, x: float, z: float, label: int, tall: float, stride: float, base: float
) -> None:
    """Legs, arms, coat, head and hair; `stride` is half the step, as a share of the height."""
    coat, trousers, hem = _any_colour(s.rng, 0.15), _any_colour(s.rng), s.rng.uniform(0.32, 0.5)
    skin = _hsv(s.rng, 0.06, 0.01, (0.25, 0.6), (0.25, 0.9))
    hair = _hsv(s.rng, 0.07, 0.02, (0.1, 0.6), (0.05, 0.5))

    def part(shape: ArrayLike, colour: Rgb, light: float = 1.0) -> None:
        points = np.multiply(shape, tall) + np.array([0.0, base])
        s.across(points, x, z, colour, label, light * s.light[0])

    for foot in (-stride, stride):
        part([(foot - 0.06, 0), (foot + 0.07, 0), (0.1, 0.5), (-0.1, 0.5)], trousers)
    for hand in (-0.18 - stride / 2, 0.18 + stride / 2):
        part([(hand - 0.04, 0.42), (hand + 0.04, 0.42), (0.14, 0.82), (-0.14, 0.82)], coat, 0.8)
    back = [(-0.15, 0.72), (-0.09, 0.84), (0.09, 0.84), (0.15, 0.72)]
    part([(0.13, hem), (-0.13, hem), *back], coat)
    part(_ring(10) * (0.065, 0.08) + np.array([0.0, 0.92]), skin)
    part(_ring(10)[:6] * (0.072, 0.085) + np.array([0.0, 0.93]), hair)


def _rider(s: _Scene, x: float, z: float) -> None:
    """Someone on a bicycle, seen from the side or from behind."""
    colour, sideways = _any_colour(s.rng), s.rng.random() < 0.5
    thin = 1.0 if sideways else 0.3
    s.cast(x, z - 0.3, 1.7 * thin, 0.7, 1.7)
    for hub in (-0.52, 0.52) if sideways else (0.0,):
        for radius, tone in ((0.36, (0.08, 0.08, 0.08)), (0.29, _times(colour, 0.7))):
            wheel = _ring(14) * (radius * thin, radius) + np.array([hub, 0.36])
            s.across(wheel, x, z, tone, BICYCLE)
    frame = [(-0.5, 0.3), (0.5, 0.3), (0.5, 0.95), (0.35, 0.95), (0.3, 0.75), (-0.2, 0.8)]
    s.across(np.multiply(frame, (thin, 1.0)), x, z, colour, BICYCLE)
    _body(s, x, z, RIDER, s.rng.uniform(1.5, 1.75), s.rng.uniform(0.02, 0.12), 0.35)


@dataclass(frozen=True)
class _Model:
    """A make of vehicle; outlines are shares of length (or half width) and height."""

    label: int
    flank: tuple[tuple[float, float], ...]  # from the end that the camera sees
    pane: tuple[float, float, float, float]  # side windows: from, to, low, high
    waist: float  # where the end starts to narrow
    top: float  # how wide it is at the roof
    size: tuple[float, float, float]  # width, height, length


_BLOCK = ((0, 0.12), (0, 1), (1, 1), (1, 0.12))
_SALOON = ((0, 0.28), (0, 0.64), (0.1, 0.66), (0.24, 1), (0.6, 1), (0.78, 0.66), (1, 0.28))
_HATCH = ((0, 0.26), (0, 0.66), (0.06, 1), (0.6, 1), (0.78, 0.66), (1, 0.58), (1, 0.26))
_VAN = ((0, 0.2), (0, 1), (0.78, 1), (0.9, 0.6), (1, 0.52), (1, 0.2))
_CARS = (
    _Model(CAR, _SALOON, (0.2, 0.7, 0.68, 0.93), 0.64, 0.78, (1.8, 1.45, 4.6)),
    _Model(CAR, _HATCH, (0.1, 0.7, 0.68, 0.93), 0.64, 0.78, (1.7, 1.5, 3.9)),
    _Model(CAR, _VAN, (0.6, 0.85, 0.6, 0.9), 0.6, 0.92, (1.95, 2.1, 5.0)),
)
_LORRIES = (
    _Model(TRUCK, _BLOCK, (0.86, 0.98, 0.45, 0.7), 1.0, 1.0, (2.5, 3.2, 8.0)),
    _Model(BUS, _BLOCK, (0.04, 0.96, 0.45, 0.8), 1.0, 1.0, (2.5, 3.0, 11.0)),
)


def _car(s: _Scene, x: float, z: float) -> None:
    """A car or a van along the street."""
    _vehicle(s, _CARS[int(s.rng.choice(3, p=[0.4, 0.42, 0.18]))], x, z)


def _lorry(s: _Scene, x: float, z: float) -> None:
    """A lorry or a bus."""
    _vehicle(s, _LORRIES[int(s.rng.integers(2))], x, z)


def _vehicle(s: _Scene, model: _Model, x: float, z: float) -> None:
    """A vehicle along the street: roof, the flank that the street shows, the end."""
    wide, high, long = np.multiply(model.size, s.rng.uniform(0.94, 1.06, 3)).tolist()
    colour, pane = _any_colour(s.rng), _hsv(s.rng, 0.58, 0.05, (0.0, 0.25), (0.08, 0.4))
    side = -int(math.copysign(1, x))
    edge, lit = x + side * wide / 2, s.light[side]
    s.cast(x, z, wide, long, high)

    def flank(shape: ArrayLike, paint: Rgb) -> None:
        s.along(np.multiply(shape, (long, high)), edge, z, paint, model.label, lit)

    ridge = [z + long * share for share, up in model.flank if up == 1]
    roof = _rects(x - side * wide * 0.4, edge, min(ridge), max(ridge))
    s.paint(_place(roof, (0, 2), (0.0, high, 0.0)), colour, model.label)
    flank(model.flank, colour)
    start, stop, low, top = model.pane
    flank([(start, low), (start + 0.05, top), (stop - 0.08, top), (stop, low)], pane)
    for axle in (0.18, 0.8):
        for radius, tone in ((0.34, 0.05), (0.18, 0.5)):
            wheel = _ring(12) * (radius / long, radius / high) + np.array([axle, 0.34 / high])
            flank(wheel, (tone, tone, tone))
    _vehicle_end(s, model, x, z, (wide / 2, high), colour, pane)


def _vehicle_end(
    s: _Scene, model: _Model, x: float, z: float, scale: tuple[float, float], colour: Rgb, pane: Rgb
) -> None:
    """The front or the back of a vehicle: wheels, body, window, bumper, lamps, number plate."""
    waist, top, low = model.waist, model.top, min(0.5, model.waist) + 0.03

    def part(shape: ArrayLike, paint: Rgb, light: float = 1.0) -> None:
        s.across(np.multiply(shape, scale), x, z, paint, model.label, light * s.light[0])

    for wheel in (-0.94, 0.7):
        part(_rects(wheel, wheel + 0.24, 0.0, 0.3), (0.05, 0.05, 0.05))
    part([(-1, 0.2), (1, 0.2), (1, waist), (top, 1), (-top, 1), (-1, waist)], colour)
    part([(-0.85, low), (0.85, low), (top - 0.08, 0.94), (0.08 - top, 0.94)], pane)
    part(_rects(-0.98, 0.98, 0.2, 0.32), _times(colour, 0.45))
    oncoming = x < -2.0
    for left in (-0.97, 0.67):
        lamp = (0.95, 0.95, 0.85) if oncoming else (0.8, 0.08, 0.05)
        part(_rects(left, left + 0.3, 0.38, 0.5), lamp, 1.2)
    part(_rects(-0.28, 0.28, 0.34, 0.42), (0.85, 0.85, 0.75))


def _paint_bonnet(s: _Scene) -> None:
    """The bonnet of the car that carries the camera, one metre before the lens."""
    height, width = 2 * s.size[0], 2 * s.size[1]
    top, colour = s.rng.uniform(0.89, 0.95), _any_colour(s.rng)
    bow = np.linspace(-1.3, 1.3, 32)
    for lift, light in ((0.0, 0.7), (0.02, 0.4)):
        rise = top + lift + (1 - top) * np.abs(bow) ** 3
        edge = np.stack([(bow + 1) / 2 * width, rise * height], -1)
        flat = np.vstack([edge, [(1.5 * width, 2 * height), (-0.5 * width, 2 * height)]])
        seen = (flat - s.centre) / s.focal * (1, -1) + np.array([0.0, s.eye])
        s.across(seen, 0.0, 1.0, colour, EGO, light)


def write_scenes(
    root: Path,
    *,
    train: int,
    val: int,
    cities: int,
    val_cities: int,
    size: tuple[int, int],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `train` + `val` scenes of `size` (H, W) below `root`, in Cityscapes' layout.

    Train scenes come from `cities` cities, val scenes from `val_cities` others. A scene depends on
    its city, its number in the city, `size` and `seed`, on nothing else. `root` appears at once
    when all is written; if the same set is there already, nothing is done. `progress(done, total)`
    is called from the calling thread.

    Raises ValueError for arguments that make no set, FileExistsError if `root` holds anything else.
    """
    wanted: Wanted = {
        "format": FORMAT_VERSION,
        "train": train,
        "val": val,
        "cities": cities,
        "val_cities": val_cities,
        "size": list(size),
        "seed": seed,
    }
    _check(wanted)
    root = Path(root).absolute()
    if _is_there(root, wanted):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        half = Path(scratch) / "set"
        half.mkdir()
        (half / "scenes.json").write_text(json.dumps(wanted, indent=2) + "\n")
        _fill(half, wanted, progress)
        try:
            half.replace(root)
        except OSError:  # someone else wrote `root` meanwhile
            if not _is_there(root, wanted):
                raise


def _check(wanted: Wanted) -> None:
    """Refuse numbers that make no set, all of them in one message."""
    least = {"train": 0, "val": 0, "seed": 0, "cities": 1, "val_cities": 1}
    wrong = [f"{k} >= {v}, got {wanted[k]}" for k, v in least.items() if wanted[k] < v]
    most = {"cities": MOST_CITIES, "val_cities": MOST_CITIES}
    wrong += [f"{k} <= {v}, got {wanted[k]}" for k, v in most.items() if wanted[k] > v]
    if min(wanted["size"]) < MIN_SIDE:
        wrong.append(f"sides of at least {MIN_SIDE} px, got size={tuple(wanted['size'])}")
    if wrong:
        raise ValueError("expected " + "; ".join(wrong))


def _is_there(root: Path, wanted: Wanted) -> bool:
    """Whether `root` holds the wanted set; FileExistsError if it holds anything else."""
    try:
        if not any(root.iterdir()):
            return False  # an empty folder is as good as none
        found = json.loads((root / "scenes.json").read_text())
    except FileNotFoundError:
        if not root.exists():
            return False
        found = "files that write_scenes did not write"
    except (NotADirectoryError, json.JSONDecodeError):
        found = "something that write_scenes did not write"
    if found != wanted:
        raise FileExistsError(
            f"{root}: expected no such folder, or the scenes {wanted}; found {found}. "
            "Give another folder, or delete this one."
        )
    return True


def city_name(city: int) -> str:
    """The made-up name of city number `city`; no two share one."""
    return _STEMS[city % len(_STEMS)] + _ENDINGS[city // len(_STEMS)]


def _jobs(wanted: Wanted) -> list[tuple[str, int, int]]:
    """(split, city, frame) of every scene. Even cities train, odd ones validate, so that no
    count can ever turn one into the other."""
    train = [
        ("train", 2 * (i % wanted["cities"]), i // wanted["cities"]) for i in range(wanted["train"])
    ]
    n = wanted["val_cities"]
    return train + [("val", 2 * (i % n) + 1, i // n) for i in range(wanted["val"])]


def _fill(root: Path, wanted: Wanted, progress: Callable[[int, int], None] | None) -> None:
    """Draw and write every scene, on all cores.

    Processes, for painting holds the GIL: 300 scenes of 128 x 256 took 11.4 s on one thread,
    13.2 s on two threads, 6.9 s in two processes. They run this very file and nothing else, so
    that neither the caller's main module nor torch is imported again. Each writes one byte a
    picture to a shared pipe.
    """
    jobs = _jobs(wanted)
    count = min(_cores(), math.ceil(len(jobs) / PICTURES_PER_PROCESS))
    tell = progress or (lambda done, total: None)
    if count <= 1:
        for done, _ in enumerate(_write_part(root, wanted, 0, 1), 1):
            tell(done, len(jobs))
        return
    command = [sys.executable, "-P", __file__, str(root), json.dumps(wanted)]
    reading, writing = os.pipe()
    children: list[subprocess.Popen[bytes]] = []
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            with os.fdopen(writing, "wb"):
                for part in range(count):
                    place = [str(part), str(count)]
                    children.append(subprocess.Popen(command + place, stdout=writing))
            done = 0
            # nothing more to read: every child has ended, one of them too early
            while done < len(jobs) and (news := pipe.read(64)):
                for _ in news:
                    done += 1
                    tell(done, len(jobs))
        if any(child.wait() for child in children):
            raise RuntimeError("a process that draws scenes failed; its traceback is above")
    finally:
        for child in children:
            child.kill()
            child.wait()


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_part(root: Path, wanted: Wanted, part: int, parts: int) -> Iterator[None]:
    """Write every `parts`-th scene from number `part` on; yields after each."""
    size, seed = tuple(wanted["size"]), wanted["seed"]
    for split, city, frame in _jobs(wanted)[part::parts]:
        rng = np.random.default_rng([seed, city, frame, *size])
        image, labels = draw_scene(rng, city_style(seed, city), size)
        stem = f"{city_name(city)}_000000_{frame:06d}"
        for kind, end, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", labels),
        ):
            folder = root / kind / split / city_name(city)
            folder.mkdir(parents=True, exist_ok=True)
            # noise hardly compresses: more effort than 1 costs time and saves little
            Image.fromarray(pixels).save(folder / f"{stem}_{end}.png", compress_level=1)
        yield


def _main(root: str, wanted: str, part: str, parts: str) -> None:
    for _ in _write_part(Path(root), json.loads(wanted), int(part), int(parts)):
        os.write(1, b".")


if __name__ == "__main__":
    _main(*sys.argv[1:])
