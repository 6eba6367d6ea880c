"""How LR images come from HR images, as matrices: what a faithful result is projected with. NumPy and OpenCV.

Every way is linear and works on rows and columns alike: LR = D·HR·Dᵀ with D of [n, 4n], but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.method.images import Image, downscale, downscale_by_area
from pipeline.spec import HISTORY, MIN_PIXELS, PROTOCOL, REDUCTIONS, SCALE, ReductionName

Matrix = NDArray[np.float32]
Array = NDArray[np.float64]

LEVEL = 1 / 255
ROUNDING = 0.5 * LEVEL
"""Standard deviation below which nothing is said to have changed an LR image: rounding makes 0.29 of a level."""
MAX_EXACT_DOUBT = 1.0 * LEVEL
"""Standard deviation of what an LR image may be off below which results reduce to it exactly."""
NETWORK_ERROR = 1.5 * LEVEL
"""Standard deviation of what the networks' images, reduced, are off."""
MAX_DEVIATIONS = 3.0
"""Standard deviations of what an LR image may be off that a result may be off from it."""
FLAT_RADIUS = 2
"""How many LR pixels each way must be the same for one to be flat."""
RIVAL_SHARE = 0.5
"""Share of the likeliest reduction's probability from which another is taken into account."""
RELAXATION = (1.8, 1.8, 1.8, 1.8, 1.8, 1.0)
"""How far the projections after the first go, in turns with clipping: more than 1 meets LR images in fewer turns."""
TOLERANCE = 1e-4
""" "Exactly", in [0, 1] of gray."""
MIN_SLOPE = 1e-3
"""Of what an LR pixel changes with μ, see ``solve_clipped``: below that no pixel that counts can be moved."""


def bicubic(x: Array) -> Array:
    """Keys' (1981) kernel with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


PILLOW: dict[ReductionName, tuple[int, Callable[[Array], Array]]] = {
    "bilinear": (1, lambda x: np.maximum(0, 1 - np.abs(x))),
    "bicubic": (2, bicubic),
    "lanczos": (3, lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}
"""How many LR pixels each way a kernel reaches, and its weight at a distance in LR pixels."""


@cache
def weights(name: ReductionName) -> Matrix:
    """What each of four pixels weighs, float32 [4], of a reduction that looks at no others."""
    if name == "nearest":
        return np.eye(SCALE, dtype=np.float32)[SCALE // 2]
    way = cv2.INTER_AREA if name == "area" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.eye(SCALE, dtype=np.float32), (SCALE, 1), interpolation=way)[0])


@lru_cache(maxsize=64)
def matrix(name: ReductionName, n: int) -> Matrix:
    """D, float32 [n, 4n]. Pillow's kernels are cut at the borders, and what is left of them weighs 1."""
    if name in PILLOW:
        reach, kernel = PILLOW[name]
        distance = (np.arange(SCALE * n) + 0.5) / SCALE - (np.arange(n)[:, None] + 0.5)
        d = np.where(np.abs(distance) < reach, kernel(distance), 0)
        d /= d.sum(axis=1, keepdims=True)
    else:
        d = np.kron(np.eye(n), weights(name))
    found: Matrix = d.astype(np.float32)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=64)
def inverse(name: ReductionName, n: int) -> Matrix:
    """D⁺ = Dᵀ(DDᵀ)⁻¹, float32 [4n, n]."""
    d = matrix(name, n).astype(np.float64)
    found: Matrix = np.linalg.solve(d @ d.T, d).T.astype(np.float32)
    found.flags.writeable = False
    return found


def reduce(image: Image, name: ReductionName) -> Image:
    """D·image·Dᵀ: float32 [4h, 4w] ⇒ [h, w]."""
    h, w = (side // SCALE for side in image.shape)
    if name in PILLOW:
        return matrix(name, h) @ image @ matrix(name, w).T
    if name == "nearest":
        return image[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    return downscale_by_area(image, SCALE) if name == "area" else downscale(image)


@lru_cache(maxsize=64)
def pixel_inverse(name: ReductionName) -> Matrix:
    """What one LR pixel becomes by D⁺, float32 [4, 4], of a reduction that looks at no other pixels."""
    one = weights(name) / np.square(weights(name)).sum()
    return np.outer(one, one)


@lru_cache(maxsize=16)
def tiled_inverse(name: ReductionName, h: int, w: int) -> Matrix:
    """``pixel_inverse`` for every pixel of an LR image: float32 [4h, 4w]."""
    return np.tile(pixel_inverse(name), (h, w))


def enlarge(lr: Image, name: ReductionName) -> Image:
    """D⁺·lr·D⁺ᵀ, the smallest image that reduces to ``lr``: float32 [h, w] ⇒ [4h, 4w]."""
    h, w = lr.shape
    if name in PILLOW:
        return inverse(name, h) @ lr @ inverse(name, w).T
    found: Image = cv2.resize(lr, (SCALE * w, SCALE * h), interpolation=cv2.INTER_NEAREST)
    found *= tiled_inverse(name, h, w)
    return found


@dataclass(frozen=True)
class History:
    """How an LR image was made, as stated or found."""

    reduction: ReductionName | None
    """None: by none that is known."""
    noise: float = 0.0
    """Standard deviation of what noise and compression changed, in [0, 1] of gray."""
    others: tuple[tuple[ReductionName, float], ...] = ()
    """Other reductions that it may have been, and how likely each is."""


def read_history(found: NDArray[np.float32] | None, degradation: str, pixels: int = MIN_PIXELS) -> History:
    """What a restorer tells of one image, float32 [ESTIMATES], and a request: the request is right.

    Without a restorer, or of an image of fewer than ``MIN_PIXELS``, which tell nothing, "auto" is the paper's
    reduction, and images are taken as they are.
    """
    stated = next((name for name in REDUCTIONS if name == degradation), None)
    if found is None or pixels < MIN_PIXELS:
        return History(stated or PROTOCOL)
    *likely, another, noise = (float(value) for value in found[:HISTORY])
    if stated is not None:
        return History(stated, noise)
    (most, best), *rest = sorted(zip(likely, REDUCTIONS, strict=True), reverse=True)
    if another >= most:
        return History(None, noise)
    return History(best, noise, tuple((name, share) for share, name in rest if share > RIVAL_SHARE * most))


def doubt_of(image: Image, reduced: Image, history: History) -> float:
    """Standard deviation of what ``reduced``, which ``history`` makes of ``image``, may be off from an LR image."""
    variance = max(0.0, history.noise**2 - ROUNDING**2)
    for name, share in history.others:
        variance += share * float(np.mean(np.square(reduce(image, name) - reduced)))
    return math.sqrt(variance)


def faithful_to(lr: Image, image: Image, history: History) -> Image:
    """The image nearby that is in [0, 1] and reduces to ``lr``, as far as that is to be trusted.

    x + w·D⁺(lr - D·x·Dᵀ)D⁺ᵀ is, with w = 1, the nearest image that reduces to ``lr``. Where noise or compression made
    ``lr`` itself wrong, or its reduction is not known for sure, w is Wiener's: the variance of what the networks get
    wrong over that and ``doubt_of``; but no pixel is left farther off than doubt makes likely. Clipping moves the image
    a little off again, so the two take turns. Where ``lr`` is 0 or 1, D·x·Dᵀ may lie beyond, as LR images are clipped.

    Args:
        lr: float32 [H, W] in [0, 1].
        image: float32 [4H, 4W] in about [0, 1].
        history: of ``lr``.
    """
    name = history.reduction
    if name is None:
        return np.clip(image, 0.0, 1.0)
    reduced = reduce(image, name)
    missing = lr - np.clip(reduced, 0.0, 1.0)
    doubt = doubt_of(image, reduced, history)
    if doubt >= MAX_EXACT_DOUBT:
        left = missing * np.float32(doubt**2 / (NETWORK_ERROR**2 + doubt**2))
        missing -= left.clip(-MAX_DEVIATIONS * doubt, MAX_DEVIATIONS * doubt)
        return correct(image, missing, name)
    image = correct(image, missing, name)
    keep_flat(lr, image)
    for far in RELAXATION:
        missing = lr - np.clip(reduce(image, name), 0.0, 1.0)
        off = np.abs(missing) >= TOLERANCE
        if not off.any():
            break
        if name not in PILLOW:
            # no pixel of LR looks at another's: those that are met already stay so
            h, w = lr.shape
            squares = image.reshape(h, SCALE, w, SCALE).transpose(0, 2, 1, 3)
            squares[off] = solve_clipped(squares[off].reshape(-1, SCALE**2), lr[off], name).reshape(-1, SCALE, SCALE)
            break
        image = correct(image, np.float32(far) * missing, name)
    return image


def keep_flat(lr: Image, image: Image) -> None:
    """Give ``image``, in place, ``lr`` where its gray value is the same all around: there is no detail there."""
    around = np.ones((2 * FLAT_RADIUS + 1, 2 * FLAT_RADIUS + 1), np.uint8)
    flat = (cv2.dilate(lr, around) == cv2.erode(lr, around)).astype(np.uint8)
    if flat.any():
        size = (SCALE * lr.shape[1], SCALE * lr.shape[0])
        value, where = (cv2.resize(a, size, interpolation=cv2.INTER_NEAREST) for a in (lr, flat))
        cv2.copyTo(value, where, image)


def correct(image: Image, missing: Image, name: ReductionName) -> Image:
    """image + D⁺·missing·D⁺ᵀ in [0, 1], in an array of its own."""
    found = enlarge(missing, name)
    found += image
    return np.clip(found, 0.0, 1.0, out=found)


def solve_clipped(squares: Image, lr: NDArray[np.float32], name: ReductionName) -> Image:
    """The nearest squares in [0, 1], of squares [N, 16] in [0, 1], that reduce to N pixels of LR, if there are any.

    They are x + μ·d, clipped, with d what a pixel weighs and one μ a square, which Newton's method finds.
    """
    d = np.outer(weights(name), weights(name)).ravel()
    found, mu = squares, np.zeros(len(lr), np.float32)
    for _ in RELAXATION:
        missing = lr - np.clip(found @ d, 0.0, 1.0)
        if np.abs(missing).max() < TOLERANCE:
            break
        free = np.where(np.outer(missing, d) > 0, found < 1, found > 0)
        mu += missing / np.maximum(free @ d**2, MIN_SLOPE)
        found = np.clip(squares + np.outer(mu, d), 0.0, 1.0)
    return found


def lr_error(image: Image, lr: Image, history: History) -> float:
    """max │lr - D·image·Dᵀ│, in [0, 1]; by means of squares where the reduction is not known."""
    return float(np.abs(lr - np.clip(reduce(image, history.reduction or "area"), 0.0, 1.0)).max())
