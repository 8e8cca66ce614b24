"""Rounding to ggml's K types, which the gguf package reads but does not write.

Each function takes f32 [n, 256] and returns the bytes u8 [n, bytes of a super-block]. The rounding is
the plain one to the nearest step; ggml searches for a better one, but the layout is the same.
"""

import numpy as np


def f16_bytes(values):
    """u8 [n, 2]"""
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def packed_scales(scales, mins):
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    low = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    middle = (mins[:, :4] & 63) | ((mins[:, 4:] >> 4) << 6)
    high = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return np.concatenate([low, middle, high], axis=1).astype(np.uint8)


def affine(values, num_bits):
    """Codes [n, 8, 32] of `num_bits`, and d, dmin and packed scales as bytes u8 [n, 16]."""
    groups = values.reshape(-1, 8, 32)
    low = np.minimum(groups.min(axis=2), 0)
    steps = (groups.max(axis=2) - low) / (2**num_bits - 1)
    d = (steps.max(axis=1) / 63).astype(np.float16).astype(np.float32)
    dmin = (-low.min(axis=1) / 63).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(steps / d[:, None]), 1, 63).astype(np.int32)
    mins = np.clip(np.rint(-low / dmin[:, None]), 0, 63).astype(np.int32)
    step, low = (d[:, None] * scales)[..., None], (dmin[:, None] * mins)[..., None]
    codes = np.clip(np.rint((groups + low) / step), 0, 2**num_bits - 1).astype(np.uint8)
    return codes, np.concatenate([f16_bytes(d), f16_bytes(dmin), packed_scales(scales, mins)], axis=1)


def nibbles(codes):
    """[n, 8, 32] of 4 bits: groups 2i and 2i + 1 share 32 bytes."""
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).reshape(len(codes), -1)


def q4_k(values):
    codes, head = affine(values, 4)
    return np.concatenate([head, nibbles(codes)], axis=1)


def q5_k(values):
    codes, head = affine(values, 5)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = np.bitwise_or.reduce((codes >> 4) << shifts, axis=1)
    return np.concatenate([head, fifth, nibbles(codes & 15)], axis=1)


def q6_k(values):
    groups = values.reshape(-1, 16, 16)
    steps = np.abs(groups).max(axis=2) / 31
    d = (steps.max(axis=1) / 127).astype(np.float16).astype(np.float32)
    scales = np.clip(np.rint(steps / d[:, None]), 1, 127).astype(np.int8)
    # A negative scale is as good as a positive one, and must be read as one.
    scales[:, 1::2] *= -1
    step = (d[:, None] * scales)[..., None]
    codes = (np.clip(np.rint(groups / step), -32, 31) + 32).astype(np.uint8)
    halves = codes.reshape(-1, 2, 4, 32)
    low = (halves & 15)[:, :, :2] | ((halves & 15)[:, :, 2:] << 4)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = np.bitwise_or.reduce((halves >> 4) << shifts, axis=2)
    parts = [low.reshape(len(low), -1), high.reshape(len(high), -1), scales.view(np.uint8), f16_bytes(d)]
    return np.concatenate(parts, axis=1)


QUANTIZE = {"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}
