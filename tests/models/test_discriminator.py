"""The patch discriminator against pix2pix' description of it, and the normalisations one may choose."""

import pytest
import torch
from torch.nn import functional as F

from safelight.errors import InputError
from safelight.models.discriminator import ActNorm, DiscriminatorConfig, PatchDiscriminator


def plain_patchgan(state, x, layers):
    """C64-C128-C256-C512 with 3 layers: convolution, batch normalisation, leaky rectifier; the last two of stride 1."""
    x = F.leaky_relu(F.conv2d(x, state["main.0.weight"], state["main.0.bias"], stride=2, padding=1), 0.2)
    place = 2
    for n in range(1, layers + 1):
        x = F.conv2d(x, state[f"main.{place}.weight"], stride=2 if n < layers else 1, padding=1)
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * state[f"main.{place + 1}.weight"][:, None, None] + state[f"main.{place + 1}.bias"][:, None, None]
        x = torch.where(x > 0, x, 0.2 * x)
        place += 3
    return F.conv2d(x, state[f"main.{place}.weight"], state[f"main.{place}.bias"], stride=1, padding=1)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_are_the_plain_networks(layers):
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(channels=8, layers=layers)).double()
    x = torch.randn(2, 3, 40, 32, dtype=torch.float64)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    torch.testing.assert_close(network(x), plain_patchgan(state, x, layers))


def test_the_papers_shape():
    with torch.device("meta"):
        network = PatchDiscriminator(DiscriminatorConfig())
        assert network(torch.empty(1, 3, 256, 256)).shape == (1, 1, 30, 30)
        pairs = PatchDiscriminator(DiscriminatorConfig(in_channels=6))
    assert sum(p.numel() for p in pairs.parameters()) == 2_768_705  # pix2pix' own, on pairs of pictures: "2.769 M"


def test_a_logit_sees_70_pixels():
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(channels=2, norm="none"))
    x = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = network(x)
    logits[0, 0, 9, 9].backward()
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
    assert rows[-1] - rows[0] + 1 == 70


def test_initial_weights():
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig())
    assert abs(network.main[5].weight.std() - 0.02) < 1e-3
    assert abs(network.main[6].weight.mean() - 1) < 0.01 and 0.01 < network.main[6].weight.std() < 0.03


@pytest.mark.parametrize("norm", ["act", "group", "none"])
def test_other_normalisations_do_not_mix_pictures(norm):
    torch.manual_seed(0)
    network = PatchDiscriminator(DiscriminatorConfig(channels=8, layers=2, norm=norm))
    x = torch.randn(3, 3, 16, 16)
    network(x)  # ActNorm initialises itself
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


def test_actnorm_normalises_its_first_batch_and_is_then_fixed():
    torch.manual_seed(0)
    norm, x = ActNorm(4), 3 * torch.randn(8, 4, 5, 5) + 2
    y = norm(x)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 2, 3)), torch.ones(4))
    scale = norm.scale.clone()
    norm(x * 10)
    assert torch.equal(norm.scale, scale)

    other = ActNorm(4)
    other.load_state_dict(norm.state_dict())
    other(x * 10)
    assert torch.equal(other.scale, scale)


def test_bad_input_is_refused():
    network = PatchDiscriminator(DiscriminatorConfig(channels=4))
    assert network(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(InputError, match="24 or more"):
        network(torch.zeros(1, 3, 23, 23))
    with pytest.raises(InputError, match="batch"):
        DiscriminatorConfig(norm="batsch")
