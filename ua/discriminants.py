"""What the guide says of predicted classes within a cell, and the logarithms in which it can be added to them.

A network's class probabilities are mixed as logarithms, so that mixing multiplies opinions. Which class a pixel of a
cell belongs to, its colour tells as well: around every cell the classes have different colours, of which the
probabilities themselves say which. So linear discriminants (Fisher 1936; one covariance for all classes, of a Gaussian
window) are learned from the LR probabilities of this one image, and what they say of the pixels of a cell, beyond what
they say of the cell, is added to the logarithms. Unlike a colour model of a whole image (GrabCut, Rother et al. 2004)
they are local, and have no part in the mean logarithm of a cell, only in how it is spread over the pixels. Colours of
classes are unmixed from those of cells (`_unmixing`), none of which has one class alone where objects are thin.

How far colours are to be believed, a map tells itself: by how well they foretell a cell's classes beside those of its
neighbours, a conditional logistic model of one parameter (`_trust`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ua import degrade
from ua.kept import kept
from ua.refinement import interpolation_weights, prominence, smooth
from ua.regression import means_and_deviations

# Added to probabilities before their logarithm is taken. .005 to .02 are as good; .05 costs maps of 21 classes a point.
FLOOR = 0.01
LARGEST = 30.0  # logarithm of a class beside which the others keep their place; its exponential is finite
WITHIN = 2.0  # standard deviation in pixels of the windows of deviations
WINDOW = 4.0  # of the Gaussian around a cell that discriminants are learned in, cells; 2 and 8 are a little worse
RIDGE = 3e-4  # on the diagonal of the covariance, squared guide units; 1e-4 is as good, 1e-3 a little worse
# What cells are followed by grows with this power of how much of the map the guide confirms: so much of the lesser
# prominence where it confirms all. 3 q^3 to 10 q^8: the higher the power, the better noisy maps, the worse clean ones.
CONFIRMED, POWER = 10.0, 8
# Maps of which it confirms less than this, mixed by Gaussians of .9 cell, are mixed by wider ones: by a power of the
# ratio, at most so much.
CLEAN, WIDENING, WIDEST = 0.75, 3, 2.0
MOST_TRUST = 3.0  # times that discriminants count; walls as thin as cells have 1.6 to 2.9, other maps 1; 5 is as good
# Shares of classes between 0 and 1 are mixtures but for so much, which is a network's doubt. .1 to .3: the less, the
# better for thin objects and borders, the worse for noisy maps.
DOUBT = 0.2
NEWTON = 5  # steps of a concave problem of one unknown; four digits after 4
PRIOR = 0.02  # cells of every class that are added, with the mean of all: a class that is hardly there has about that


def to_logarithms(probabilities: Tensor) -> Tensor:
    """log(p + `FLOOR`) of class probabilities, in their shape."""
    return (probabilities + FLOOR).log()


def to_probabilities(logarithms: Tensor) -> Tensor:
    """The inverse of `to_logarithms`, (B, C, H, W): none below 0, sums of 1; NaN stays NaN."""
    excess = (logarithms.amax(1, keepdim=True) - LARGEST).clamp_min(0)
    found = ((logarithms - excess).exp() - FLOOR).clamp_min(0)
    total = found.sum(1, keepdim=True)
    nothing = total == 0
    found = found / total.masked_fill(nothing, 1)
    return torch.where(nothing, 1 / logarithms.shape[1], found) if bool(nothing.any()) else found


def learn(probabilities: Tensor, guide: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What discriminants say of the pixels beyond what they say of cells, to be added to logarithms; and their trust.

    With f the guide's channels and their deviations (2 G maps), mu_c the mean of f over the cells around, weighted by
    class c and unmixed (`_unmixing`), and S the covariance of f within classes, around the means as they were before
    (that within cells counts in full):
    L_c(f) = f' S^-1 mu_c - mu_c' S^-1 mu_c / 2. What is said at the pixels, less its average over the cells around, is
    multiplied by the trust (`_trust`).

    Args:
        probabilities: (B, C, h, w), of classes, sums of 1.
        guide: (B, G, H, W).
        valid: bool (B, h, w), the cells to learn from; None: all.

    Returns:
        what is to be added, (B, C, H, W), sums of 0 over the classes; the trust, (B, 1, 1, 1), in [1, `MOST_TRUST`].
        Both in the dtype of the guide, without gradient.
    """
    with torch.no_grad():
        centred = guide - guide.mean((2, 3), keepdim=True)
        # Means of windows would find as much, but look across borders, and shift those of clean edges.
        _, deviations = means_and_deviations(centred, WITHIN)
        maps = torch.cat([centred, deviations], 1)
        slopes, offsets, left_out = _discriminants(probabilities, maps, valid)
        found = _at_pixels(offsets, maps)
        for slope, hr_map in zip(slopes.unbind(2), maps.split(1, 1), strict=True):
            found.addcmul_(_at_pixels(slope, maps), hr_map)
        found -= found.mean(1, keepdim=True)
        found.sub_(_at_pixels(averages(found, probabilities), maps))
        trust = _trust(left_out, probabilities, valid).to(found.dtype)
        return found.mul_(trust), trust


def confirmed(found: Tensor, probabilities: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """What of the cells of a prediction `found` (B, C, H, W), rendered from them, confirms; without gradient.

    What `ua.refinement.prominence` says of the cell or, if that is less, of what rendering made of it: what neither
    the cells around it nor the guide say as well is noise. How much of a map that leaves tells how noisy it is: half
    where tokens are classified one by one, .7 to .8 where a network has looked around.

    Args:
        found: (B, C, H, W), class probabilities; NaN where no valid cell is near.
        probabilities: (B, C, h, w), the prediction.
        valid: bool (B, h, w), the cells that count; None: all.

    Returns:
        of every cell, (B, h, w) in [0, `ua.refinement.FOLLOWED`], 0 where it is not valid; of the map, (B, 1, 1) in
        [0, 1], 1 where no cell stands out.
    """
    with torch.no_grad():
        backed = averages(found, probabilities, None if valid is None else ~found.isnan()[:, 0])
        own, other = (prominence(lr_maps, valid) for lr_maps in (probabilities, backed.to(probabilities.dtype)))
        lesser, total = torch.minimum(own, other), own.sum((1, 2), keepdim=True)
        part = lesser.sum((1, 2), keepdim=True) / total.clamp_min(1e-12)
        return lesser, part.masked_fill(total == 0, 1)


def followed(of_cells: Tensor, of_map: Tensor) -> Tensor:
    """How closely the cells are to be followed, (B, h, w), by what is `confirmed`: the noisier a map, the more loosely.

    In [0, CONFIRMED * `ua.refinement.FOLLOWED`].
    """
    return CONFIRMED * of_map**POWER * of_cells


def widening(of_map: Tensor) -> Tensor:
    """How many times wider a map is to be mixed, (B, 1, 1) in [1, `WIDEST`], by what of it is `confirmed`.

    Noise wants a mean of more cells.
    """
    return (CLEAN / of_map.clamp_min(1e-6)).pow(WIDENING).clamp(1, WIDEST)


def _trust(evidence: Tensor, probabilities: Tensor, valid: Tensor | None) -> Tensor:
    """How many times over colours are to be believed, (B, 1, 1, 1), in [1, `MOST_TRUST`].

    The most likely t of p(c) ~ n(c) exp(t L_c), p the classes of a cell, n the mean of its four neighbours, L the
    evidence (B, C, h, w) of its colours, under a Gaussian around 1 of deviation 1 (a conditional logit, McFadden 1974,
    by Newton's steps). Networks' maps are smooth, so that neighbours foretell a cell and t would be below 1; it is
    above where objects are as thin as cells and colours tell them apart.
    """
    known = torch.ones_like(probabilities[:, :1]) if valid is None else valid[:, None]
    known, evidence = known.double(), evidence.double()
    shares = probabilities.double().masked_fill(known == 0, 0)
    count = _sum_of_neighbours(known)
    prior = to_logarithms(_sum_of_neighbours(shares) / count.clamp_min(1))
    counts = known * (count > 0)
    trust = torch.ones_like(evidence[:, :1, :1, :1])
    for _ in range(NEWTON):
        found = (prior + trust * evidence).softmax(1)
        mean = (found * evidence).sum(1, keepdim=True)
        slope = (counts * (shares - found) * evidence).sum((1, 2, 3), keepdim=True) + 1 - trust
        curvature = (counts * found * (evidence - mean).square()).sum((1, 2, 3), keepdim=True) + 1
        trust = (trust + slope / curvature).clamp(1, MOST_TRUST)
    return trust


def _sum_of_neighbours(lr_maps: Tensor) -> Tensor:
    """Of the four around every cell; beyond the border there is nothing."""
    wide = F.pad(lr_maps, (1, 1, 1, 1))
    return wide[..., 1:-1, 2:] + wide[..., 1:-1, :-2] + wide[..., 2:, 1:-1] + wide[..., :-2, 1:-1]


def averages(hr_maps: Tensor, like: Tensor, known: Tensor | None = None) -> Tensor:
    """Of the pixels (B, H, W) that are known over every cell of `like` (B, C, h, w)."""
    return degrade.area(hr_maps, (like.shape[-2], like.shape[-1]), valid=known)[0]


def _discriminants(probabilities: Tensor, maps: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes (B, C, K, h, w) and offsets (B, C, h, w) for the K maps (B, K, H, W), float64.

    And what they would say of each cell, (B, C, h, w), had its own class no part in the means. These are not unmixed:
    how far colours are to be believed, they tell better as they are.
    """
    known = torch.ones_like(probabilities[:, 0]) if valid is None else valid
    weights = known[:, None].double()
    shares = probabilities.double() / probabilities.double().sum(1, keepdim=True).clamp_min(1e-6) * weights
    means = averages(maps, probabilities).double()
    # A map at a time: all products of the pixels at once would be as many as the square of the maps.
    products = torch.cat([averages(maps * one, probabilities) for one in maps.split(1, 1)], 1).double() * weights
    number = maps.shape[1]

    def around(values: Tensor, *channels: int) -> Tensor:
        return smooth(values.flatten(1, -3), WINDOW).unflatten(1, channels)

    cells = around(weights, 1).clamp_min(1e-9)  # [B, 1, h, w]
    count = around(shares, shares.shape[1])  # [B, C, h, w]
    total = around(shares[:, :, None] * means[:, None], shares.shape[1], number)  # [B, C, K, h, w]
    overall = total.sum(1, keepdim=True) / cells[:, None]
    farther = _unmixing(count / cells, around(shares.square(), shares.shape[1]) / cells)[:, :, None]
    mean = overall + farther * ((total + PRIOR * overall) / (count + PRIOR)[:, :, None] - overall)
    plain = total / count.clamp_min(1e-9)[:, :, None]
    between = torch.einsum("bchw,bcihw,bcjhw->bijhw", count, plain, plain)
    within = (around(products, number, number) - between) / cells[:, None]
    within = within.permute(0, 3, 4, 1, 2) + RIDGE * torch.eye(number).to(within)
    own = _own_weights(shares.shape[2], shares.shape[3], shares.device) * shares
    others = (total - own[:, :, None] * means[:, None] + PRIOR * overall) / (count - own + PRIOR)[:, :, None]
    by_cell = torch.cat([mean, others], 1).permute(0, 3, 4, 2, 1)  # [B, h, w, K, 2 C]
    slopes = torch.linalg.solve(within, by_cell)
    offsets = (-0.5 * (by_cell * slopes).sum(-2)).permute(0, 3, 1, 2)
    slopes, slopes_of_others = slopes.permute(0, 4, 3, 1, 2).chunk(2, 1)
    offsets, offsets_of_others = offsets.chunk(2, 1)
    return slopes, offsets, offsets_of_others + (slopes_of_others * means[:, None]).sum(2)


def _unmixing(share: Tensor, square: Tensor) -> Tensor:
    """How many times farther from the mean of all the colour of a class is than that of cells weighted by it.

    Where cells are mixtures, weighted means are nearer. By least squares of colours on shares (linear unmixing: Settle
    & Drake, "Linear mixing and the estimation of ground cover proportions", 1993), of one class against all others, it
    is s (1 - s) / v times, v the variance of the shares: once where every cell has one class.

    Args:
        share, square: the means of a class's shares around every cell, s, and of their squares, (B, C, h, w).

    Returns:
        (B, C, h, w), in [1, 1 / `DOUBT`].
    """
    pure = share * (1 - share)
    variance = (square - share.square()).clamp_min(0)
    return (pure / (DOUBT * pure + (1 - DOUBT) * variance).clamp_min(1e-12)).clamp(1, 1 / DOUBT)


@kept
def _own_weights(rows: int, cols: int, device: torch.device) -> Tensor:
    """Of every cell in its own window, (rows, cols) float64: more at a border, whose cells are repeated outwards."""
    impulses = (torch.eye(size, dtype=torch.float64)[:, None, :, None] for size in (rows, cols))
    down, across = (smooth(each, WINDOW)[:, 0, :, 0].diagonal() for each in impulses)
    return (down[:, None] * across).to(device)


def _at_pixels(lr_maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear between the cells, by matrices: half the time of `interpolate` on a CPU."""
    sizes = zip(like.shape[-2:], lr_maps.shape[-2:], strict=True)
    down, across = (interpolation_weights("bilinear", *axis, like.dtype, like.device) for axis in sizes)
    return (down @ lr_maps.to(like.dtype)) @ across.mT
