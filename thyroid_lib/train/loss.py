"""Losses of a step: cross-entropy and soft Dice, of one class or of several, partly labelled.

One class: one logit a pixel, and a mask of 0 and 1. Several: K+1 logits, the first of background,
and for each pixel the SET of classes that it may be, in planes (B,K+1,S,S) of 0 and 1. A pixel
costs −log of the probability of its set: foreground of a kind that nobody knows may be any class,
and where a class was not outlined, background may be that class too. Source: marginal loss of Shi,
Xiao, Chen & Zhou, Med. Image Anal. 70 (2021) 101979, arXiv 2007.03868.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from thyroid_lib.data.classes import SURROUND, UNKNOWN
from thyroid_lib.settings import MOST_CLASSES


def possible_classes(labels: np.ndarray, annotated: np.ndarray, classes: list[str]) -> np.ndarray:
    """Return the set of classes of each pixel as bits, uint8 (N,S,S); bit 0 is background.

    labels: label maps, uint8 (N,S,S); annotated: bool (N,K). Where the class `SURROUND` was
    outlined, every pixel is what it is called, and lesions that were not outlined are part of it:
    if they could be anywhere, a whole frame of lesion would cost nothing, and a network that can
    tell the sources apart learns that. ValueError: more than seven classes.
    """
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"classes: got {len(classes)}, need at most {MOST_CLASSES}")
    bits = np.array([1 << code for code in range(1, len(classes) + 1)], np.uint8)
    tables = np.zeros((len(labels), 256), np.uint8)
    tables[:, 1 : len(classes) + 1], tables[:, UNKNOWN] = bits, bits.sum()
    others = ((~annotated) * bits).sum(axis=1).astype(np.uint8)  # what was not outlined
    tables[:, 0] = 1 | others
    if SURROUND in classes:
        tables[annotated[:, classes.index(SURROUND)], 0] = 1
    return np.take_along_axis(tables, labels.reshape(len(labels), -1), 1).reshape(labels.shape)


def to_mask(outlines: Tensor, channels: int) -> Tensor:
    """Turn uint8 (B,S,S), masks or sets of classes, into what losses take, float32 (B,C,S,S)."""
    if channels == 1:
        return outlines.unsqueeze(1).float()
    bits = torch.arange(channels, device=outlines.device).view(-1, 1, 1)
    return (outlines.unsqueeze(1) >> bits & 1).float()


def cross_entropy(logits: Tensor, mask: Tensor, *, each: bool = False) -> Tensor:
    """Return the mean cross-entropy of logits (B,C,S,S), or with `each` that of each frame, (B,).

    mask: as `to_mask` gives it. A pixel that augmentation left without a class is background.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        reduction = "none" if each else "mean"
        loss = binary_cross_entropy_with_logits(logits, mask, reduction=reduction)
        return loss.mean((1, 2, 3)) if each else loss
    background = mask[:, :1] + (mask.sum(1, keepdim=True) == 0)
    possible = torch.cat([background, mask[:, 1:]], 1) > 0
    log_prob = logits.log_softmax(1).masked_fill(~possible, -torch.inf)
    loss = -log_prob.logsumexp(1)  # (B,S,S)
    return loss.mean((1, 2)) if each else loss.mean()


def soft_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - (2 Σ p·y + 1) / (Σ p + Σ y + 1) of each frame and class, as a mean over both.

    p: probability; y: mask, 0 or 1; sums over a frame's pixels, of several classes over those whose
    class is certain. 0: all right, or rightly empty. Source: Milletari, Navab & Ahmadi, 3DV 2016
    (V-Net; with squares below the line); without them Drozdzal et al., DLMIA 2016, arXiv
    1608.04117.
    """
    if logits.shape[1] == 1:
        prob = logits.float().sigmoid()
    else:
        certain = mask.sum(1, keepdim=True) <= 1
        prob = logits.float().softmax(1)[:, 1:] * certain
        mask = mask[:, 1:] * certain
    both, total = (prob * mask).sum((2, 3)), (prob + mask).sum((2, 3))  # (B,K) each
    return (1 - (2 * both + 1) / (total + 1)).mean()
