"""Reductions from HR to LR as matrices, and the projection of faithful results. NumPy and OpenCV.

Every reduction is linear and separable: LR = D·HR·Dᵀ with D of shape [n, 4n], up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
"""Standard deviation below which an LR image counts as unchanged: rounding alone causes 0.29 levels."""
MAX_EXACT_DOUBT = 1.0 * LEVEL
"""Standard deviation of an LR image's error below which results reduce to it exactly."""
NETWORK_ERROR = 1.5 * LEVEL
"""Standard deviation of the error of the networks' images after reduction."""
MAX_DEVIATIONS = 3.0
"""Maximum deviation of a reduced result from the LR image, in standard deviations of the latter's error."""
FLAT_RADIUS = 2
"""Distance in LR pixels within which all pixels of a flat area are equal."""
RIVAL_SHARE = 0.5
"""Minimum probability of other reductions to be considered, relative to the most probable one."""
RELAXATION = (1.8, 1.8, 1.8, 1.8, 1.8, 1.0)
"""Relaxation factors of the projections after the first, alternating with clipping: above 1 converges faster."""
TOLERANCE = 1e-4
"""Difference that counts as exact, in [0, 1] of gray."""
MIN_SLOPE = 1e-3
"""Lower bound of an LR pixel's derivative by μ in ``solve_clipped``; below it, no relevant pixel can change."""


def bicubic(x: Array) -> Array:
    """Return Keys' (1981) kernel with a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


PILLOW: dict[ReductionName, tuple[int, Callable[[Array], Array]]] = {
    "bilinear": (1, lambda x: np.maximum(0, 1 - np.abs(x))),
    "bicubic": (2, bicubic),
    "lanczos": (3, lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)),
}
"""Name ⇒ (kernel radius in LR pixels, weight as a function of the distance in LR pixels)."""
MAX_REACH = max(reach for reach, _ in PILLOW.values())
BAND = 32
"""Rows of D that are multiplied at once."""


@cache
def weights(name: ReductionName) -> Matrix:
    """Return the weights of four HR pixels, float32 [4], for a reduction with disjoint support."""
    if name == "nearest":
        return np.eye(SCALE, dtype=np.float32)[SCALE // 2]
    way = cv2.INTER_AREA if name == "area" else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.eye(SCALE, dtype=np.float32), (SCALE, 1), interpolation=way)[0])


@lru_cache(maxsize=64)
def matrix(name: ReductionName, n: int) -> Matrix:
    """Return D, float32 [n, 4n]. Pillow's kernels are truncated at the borders and renormalised."""
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
def gram_inverse(name: ReductionName, n: int) -> Matrix:
    """Return (DDᵀ)⁻¹, float32 [n, n], of which the pseudoinverse of D is made: D⁺ = Dᵀ(DDᵀ)⁻¹."""
    d = matrix(name, n).astype(np.float64)
    found: Matrix = np.linalg.inv(d @ d.T).astype(np.float32)
    found.flags.writeable = False
    return found


def bands(n: int) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of LR pixels, and those around them that share HR pixels with them in Pillow's matrices.

    The rest of D is 0 there: products by bands take a fraction of the time.
    """
    for i in range(0, n, BAND):
        yield slice(i, min(n, i + BAND)), slice(max(0, i - MAX_REACH), min(n, i + BAND + MAX_REACH))


def in_hr(lr: slice) -> slice:
    return slice(SCALE * lr.start, SCALE * lr.stop)


def reduce_by(d_h: Matrix, d_w: Matrix, image: Image) -> Image:
    """Return D_h·image·D_wᵀ: float32 [4h, 4w] ⇒ [h, w]."""
    half, found = (np.empty((len(d_h), n), np.float32) for n in (image.shape[1], len(d_w)))
    for part, around in bands(len(d_h)):
        half[part] = d_h[part, in_hr(around)] @ image[in_hr(around)]
    for part, around in bands(len(d_w)):
        found[:, part] = half[:, in_hr(around)] @ d_w[part, in_hr(around)].T
    return found


def enlarge_by(d_h: Matrix, d_w: Matrix, lr: Image) -> Image:
    """Return D_hᵀ·lr·D_w: float32 [h, w] ⇒ [4h, 4w]."""
    half, found = (np.empty((SCALE * len(d_h), n), np.float32) for n in (len(d_w), SCALE * len(d_w)))
    for part, around in bands(len(d_h)):
        half[in_hr(part)] = d_h[around, in_hr(part)].T @ lr[around]
    for part, around in bands(len(d_w)):
        found[:, in_hr(part)] = half[:, around] @ d_w[around, in_hr(part)]
    return found


def reduce(image: Image, name: ReductionName) -> Image:
    """Return D·image·Dᵀ: float32 [4h, 4w] ⇒ [h, w]."""
    h, w = (side // SCALE for side in image.shape)
    if name in PILLOW:
        return reduce_by(matrix(name, h), matrix(name, w), image)
    if name == "nearest":
        return image[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    return downscale_by_area(image, SCALE) if name == "area" else downscale(image)


@lru_cache(maxsize=16)
def tiled_inverse(name: ReductionName, h: int, w: int) -> Matrix:
    """Return D⁺ of a single pixel for every pixel of an LR image, for a reduction with disjoint support: [4h, 4w]."""
    one = weights(name) / np.square(weights(name)).sum()
    return np.tile(np.outer(one, one), (h, w))


def enlarge(lr: Image, name: ReductionName) -> Image:
    """Return D⁺·lr·D⁺ᵀ, the minimum-norm image that reduces to ``lr``: float32 [h, w] ⇒ [4h, 4w]."""
    h, w = lr.shape
    if name in PILLOW:
        return enlarge_by(matrix(name, h), matrix(name, w), gram_inverse(name, h) @ lr @ gram_inverse(name, w))
    found: Image = cv2.resize(lr, (SCALE * w, SCALE * h), interpolation=cv2.INTER_NEAREST)
    found *= tiled_inverse(name, h, w)
    return found


@dataclass(frozen=True)
class History:
    """How an LR image was made, as stated or estimated."""

    reduction: ReductionName | None
    """Reduction; None if unknown."""
    noise: float = 0.0
    """Standard deviation of noise and compression, in [0, 1] of gray."""
    others: tuple[tuple[ReductionName, float], ...] = ()
    """Other plausible reductions and their probabilities."""


def read_history(found: NDArray[np.float32] | None, degradation: str, pixels: int = MIN_PIXELS) -> History:
    """Return the history from estimates, float32 [ESTIMATES], and the requested ``degradation``, which prevails.

    Without a restorer, or for images of fewer than ``MIN_PIXELS``, which are too small to estimate, "auto" means the
    paper's reduction without noise.
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
    """Return the standard deviation of the expected error of ``reduced``, ``image`` reduced by ``history``."""
    variance = max(0.0, history.noise**2 - ROUNDING**2)
    for name, share in history.others:
        variance += share * float(np.mean(np.square(reduce(image, name) - reduced)))
    return math.sqrt(variance)


def faithful_to(lr: Image, image: Image, history: History) -> Image:
    """Project an image to one in [0, 1] that reduces to ``lr``, as closely as ``lr`` can be trusted.

    x + w·D⁺(lr - D·x·Dᵀ)D⁺ᵀ with w = 1 is the nearest image that reduces to ``lr``. If ``lr`` has noise or compression,
    or its reduction is uncertain, w is the Wiener weight: the variance of the networks' error over the sum of that and
    the variance of ``doubt_of``, with deviations limited to ``MAX_DEVIATIONS``. Clipping perturbs the projection, so
    the two alternate. Where ``lr`` is 0 or 1, D·x·Dᵀ may exceed it, because LR images are clipped.

    Args:
        lr: float32 [H, W] in [0, 1].
        image: float32 [4H, 4W], approximately in [0, 1].
        history: the history of ``lr``.
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
    for factor in RELAXATION:
        missing = lr - np.clip(reduce(image, name), 0.0, 1.0)
        off = np.abs(missing) >= TOLERANCE
        if not off.any():
            break
        if name not in PILLOW:
            # LR pixels have disjoint support: those already exact stay exact
            h, w = lr.shape
            squares = image.reshape(h, SCALE, w, SCALE).transpose(0, 2, 1, 3)
            squares[off] = solve_clipped(squares[off].reshape(-1, SCALE**2), lr[off], name).reshape(-1, SCALE, SCALE)
            break
        image = correct(image, np.float32(factor) * missing, name)
    return image


def keep_flat(lr: Image, image: Image) -> None:
    """Copy ``lr`` into ``image`` in place where its surroundings are constant and therefore without detail."""
    around = np.ones((2 * FLAT_RADIUS + 1, 2 * FLAT_RADIUS + 1), np.uint8)
    flat = (cv2.dilate(lr, around) == cv2.erode(lr, around)).astype(np.uint8)
    if flat.any():
        size = (SCALE * lr.shape[1], SCALE * lr.shape[0])
        value, where = (cv2.resize(a, size, interpolation=cv2.INTER_NEAREST) for a in (lr, flat))
        cv2.copyTo(value, where, image)


def correct(image: Image, missing: Image, name: ReductionName) -> Image:
    """Return a copy of image + D⁺·missing·D⁺ᵀ, clipped to [0, 1]."""
    found = enlarge(missing, name)
    found += image
    return np.clip(found, 0.0, 1.0, out=found)


def solve_clipped(squares: Image, lr: NDArray[np.float32], name: ReductionName) -> Image:
    """Return the squares in [0, 1] nearest to ``squares`` [N, 16] that reduce to the N pixels ``lr``, if they exist.

    They are x + μ·d, clipped, with the pixel weights d and one μ per square, found by Newton's method.
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
    """Return max │lr - D·image·Dᵀ│, in [0, 1], with area means if the reduction is unknown."""
    return float(np.abs(lr - np.clip(reduce(image, history.reduction or "area"), 0.0, 1.0)).max())
