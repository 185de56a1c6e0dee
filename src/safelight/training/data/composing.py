"""Plans of scenes -> pixels, many at once, on any device.

Every scene is the same arithmetic: a backdrop, then object over object (Porter & Duff 1984), each sampled from the
level of its pyramid that is next in size, so that a bilinear sample of it is free of aliases. Objects of one layer and
level are drawn together. Nothing waits for the device: all that decides what to do is known from the plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from safelight.diffusion.noise import sent
from safelight.training.data.colors import hue_matrix
from safelight.training.data.planning import Backdrop, Placed, Plan
from safelight.training.data.sprites import Bank, Kind

SEEN = 0.5  # alpha from which on a pixel belongs to an object


@dataclass(frozen=True, eq=False)
class Composed:
    """`pictures` (B, 3, S, S) float32 in [0, 1]; `masks` (B, K, S, S) bool, where each object is seen, if asked for."""

    pictures: Tensor
    masks: Tensor | None


def compose(bank: Bank, plans: Sequence[Plan], *, masks: int = 0) -> Composed:
    """Draw scenes on the device that holds the bank; with `masks`, the masks of up to that many objects."""
    device, size = bank.plates.device, bank.size
    canvas = backdrops(bank, [plan.backdrop for plan in plans])
    most = max((len(plan.objects) for plan in plans), default=0)
    seen = torch.zeros(len(plans), masks, size, size, dtype=torch.bool, device=device) if masks else None
    for layer in range(most):
        for (kind, level), members in by_level(bank, plans, layer).items():
            where = _tensor([b for b, _ in members], device, torch.int64)
            drawn = draw(bank, kind, level, [placed for _, placed in members])
            alpha = drawn[:, 3:]
            canvas[where] = drawn[:, :3] + canvas[where] * (1 - alpha)
            if seen is not None:
                opaque = alpha[:, 0] >= SEEN
                seen[where] &= ~opaque[:, None]
                seen[where, layer] = opaque
    return Composed(canvas.clamp_(0, 1), seen)


def by_level(bank: Bank, plans: Sequence[Plan], layer: int) -> dict[tuple[Kind, int], list[tuple[int, Placed]]]:
    """Sort one layer's objects, with the numbers of their scenes, by the pyramid level they are drawn from."""
    groups: dict[tuple[Kind, int], list[tuple[int, Placed]]] = {}
    for b, plan in enumerate(plans):
        if layer < len(plan.objects):
            placed = plan.objects[layer]
            groups.setdefault((placed.sprite.kind, level_for(bank, placed)), []).append((b, placed))
    return groups


def level_for(bank: Bank, placed: Placed) -> int:
    """Choose the smallest level that is not smaller than the object is drawn."""
    sides = [level.shape[-1] for level in bank.pyramids[placed.sprite.kind]]
    return max((i for i, side in enumerate(sides) if side >= placed.side - 0.5), default=0)


def draw(bank: Bank, kind: Kind, level: int, objects: Sequence[Placed]) -> Tensor:
    """Sample n sprites of one level -> (n, 4, S, S) float32 in [0, 1], premultiplied, empty around the sprite."""
    tiles, size = bank.pyramids[kind][level], bank.size
    rows = _tensor([placed.sprite.row for placed in objects], tiles.device, torch.int64)
    # Pixel X of the scene, from -1 to 1, lies at a·X + b of the tile.
    maps = [[_line(p.x, p.side, size, -1 if p.flip else 1), _line(p.y, p.side, size, 1)] for p in objects]
    theta = torch.tensor([[[a, 0, b], [0, c, d]] for (a, b), (c, d) in maps])
    grid = F.affine_grid(sent(theta, tiles.device), [len(objects), 4, size, size], align_corners=False)
    mode = "nearest" if kind == "pixel" and level == 0 else "bilinear"
    drawn = F.grid_sample(tiles[rows].float(), grid, mode=mode, align_corners=False) / 255
    if any(placed.turn for placed in objects):
        matrices = torch.stack([torch.from_numpy(hue_matrix(placed.turn)) for placed in objects])
        turned = torch.einsum("nij,njhw->nihw", sent(matrices, tiles.device), drawn[:, :3])
        drawn = torch.cat([turned.clamp(min=0).minimum(drawn[:, 3:]), drawn[:, 3:]], 1)
    return drawn


def _line(start: float, side: float, size: int, sign: int) -> tuple[float, float]:
    return sign * size / side, sign * ((size - 2 * start) / side - 1)


def backdrops(bank: Bank, behind: Sequence[Backdrop]) -> Tensor:
    """Draw what stands behind n scenes -> (n, 3, S, S) float32 in [0, 1]."""
    device, size = bank.plates.device, bank.size
    canvas = ramps(behind, size, device)
    plated = [(b, backdrop, backdrop.plate) for b, backdrop in enumerate(behind) if backdrop.plate is not None]
    if plated:
        steps = torch.arange(size)
        across = torch.stack([steps.flip(0) + d.x if d.flip else steps + d.x for _, d, _ in plated])
        down = torch.stack([steps + d.y for _, d, _ in plated])
        rows = _tensor([plate.row for *_, plate in plated], device, torch.int64)
        y, x = sent(down, device)[:, :, None], sent(across, device)[:, None, :]
        shown = bank.plates[rows[:, None, None], :, y, x]  # (n, S, S, 3): indices apart bring their axes to the front
        where = _tensor([b for b, *_ in plated], device, torch.int64)
        canvas[where] = shown.movedim(-1, 1).float() / 255
    return canvas


def ramps(behind: Sequence[Backdrop], size: int, device: torch.device) -> Tensor:
    """Draw plain colours and gradients."""
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = axis[:, None], axis[None, :]
    a, b, r, c = _tensor([d.ramp for d in behind], device).T[..., None, None]
    share = (a * x + b * y + r * torch.hypot(x, y) + c).clamp(0, 1)[:, None]
    first, second = _tensor([d.colors for d in behind], device).unbind(1)
    return torch.lerp(first[..., None, None], second[..., None, None], share)


def _tensor(values: object, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return sent(torch.tensor(values, dtype=dtype), device)
