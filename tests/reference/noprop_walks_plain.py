"""The samplers of NoProp as one would first write them: one image at a time, in float64, with the noise given.

Nothing here is imported from the package. A walk goes through `times`; `estimate(z, t)` is the label estimate there,
`rate(z, t)` is dz/dt, `alpha_bar(t)` a number. In discrete time, t is the number of blocks that z has been through.
"""

import itertools
import math


def plain_euler(rate, times, z):
    for before, after in itertools.pairwise(times):
        z = z + (after - before) * rate(z, before)
    return z


def plain_heun(rate, times, z, to_the_end):
    """Heun's method; without `to_the_end`, the step that ends at the last time is Euler's."""
    for before, after in itertools.pairwise(times):
        first = rate(z, before)
        ahead = z + (after - before) * first
        if after < times[-1] or to_the_end:
            ahead = z + (after - before) * (first + rate(ahead, after)) / 2
        z = ahead
    return z


def plain_ddim(estimate, alpha_bar, times, z):
    """The noise that z would hold if the estimate were right is kept, and mixed anew with the estimate."""
    for before, after in itertools.pairwise(times):
        label = estimate(z, before)
        noise = (z - math.sqrt(alpha_bar(before)) * label) / math.sqrt(1 - alpha_bar(before))
        z = math.sqrt(alpha_bar(after)) * label + math.sqrt(1 - alpha_bar(after)) * noise
    return z


def plain_ancestral(estimate, alpha_bar, times, normals):
    """Equation 3 of the paper, from z_0 = `normals[0]` on, with `normals[i]` as the noise of step i."""
    z = normals[0]
    for (before, after), normal in zip(itertools.pairwise(times), normals[1:], strict=True):
        low, high = alpha_bar(before), alpha_bar(after)
        alpha = low / high
        a = math.sqrt(high) * (1 - alpha) / (1 - low)
        b = math.sqrt(alpha) * (1 - high) / (1 - low)
        c = (1 - high) * (1 - alpha) / (1 - low)
        z = a * estimate(z, before) + b * z + math.sqrt(c) * normal
    return z
