"""noise_step as one would first write it: one probe after another, each by torch.func.jvp on the whole net.

Nothing here is imported from the package. The engine of alignments is held to `plain_alignments`, and the rule to
`plain_step`. A probe is a flat tensor over all weights, parameters one after another.
"""

import statistics

import torch
import torch.nn.functional as F


def plain_alignments(net, inputs, labels, probes, loss=F.cross_entropy):
    """alpha_i = J nu_i for each row of `probes` (K, weights), and the loss at the weights as they are."""
    weights = {name: parameter.detach().to(inputs.dtype) for name, parameter in net.named_parameters()}

    def value(changed):
        return loss(torch.func.functional_call(net, changed, (inputs,)), labels)

    alphas = []
    for probe in probes:
        tangents, start = {}, 0
        for name, weight in weights.items():
            tangents[name] = probe[start : start + weight.numel()].view(weight.shape).to(weight.dtype)
            start += weight.numel()
        alphas.append(torch.func.jvp(value, (weights,), (tangents,))[1])
    return torch.stack(alphas), value(weights)


def plain_trits(alphas):
    """tau_i = sgn(alpha_i) if |alpha_i| >= median_j |alpha_j| else 0; an even number's median lies between two."""
    middle = statistics.median(alphas.abs().tolist())
    return torch.tensor([int(alpha.sign()) if abs(alpha.item()) >= middle else 0 for alpha in alphas])


def plain_step(net, inputs, labels, probes):
    """One step: g = clamp(sum_i tau_i nu_i, -1, 1) and w = clamp(w - g, -1, 1). Changes the net; returns the trits."""
    alphas, _ = plain_alignments(net, inputs, labels, probes)
    trits = plain_trits(alphas)
    change = torch.zeros(probes.shape[1], dtype=torch.int64)
    for trit, probe in zip(trits, probes, strict=True):
        change += trit * probe.to(torch.int64)
    change = change.clamp(-1, 1)
    start = 0
    for parameter in net.parameters():
        part = change[start : start + parameter.numel()].view(parameter.shape)
        parameter.data.copy_((parameter.data.to(torch.int64) - part).clamp(-1, 1))
        start += parameter.numel()
    return trits
