"""What a new first stage begins with: a linear chain that keeps a picture's colours."""

import pytest
import torch
from first_stage import TINY, TINY_VQ
from torch import nn

from safelight.models.attention import Attention
from safelight.models.autoencoder import Autoencoder
from safelight.models.layers import ResBlock
from safelight.training.stages.beginning import begin_linear


@pytest.mark.parametrize("config", [TINY, TINY_VQ], ids=["kl", "vq"])
def test_blocks_do_nothing_yet(config):
    torch.manual_seed(0)
    network = begin_linear(Autoencoder(config))
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    assert blocks
    for block in blocks:
        x = torch.randn(2, block.norm1.num_channels, 8, 8)
        torch.testing.assert_close(block(x), block.conv_shortcut(x), rtol=0, atol=0)
    for module in network.modules():
        if isinstance(module, Attention):
            assert not module.to_out[0].weight.any() and not module.to_out[0].bias.any()


def test_convolutions_of_the_chain_are_orthogonal_and_begin_anew():
    torch.manual_seed(0)
    network = Autoencoder(TINY)
    before = network.encoder.conv_in.weight.clone()
    begin_linear(network)
    chain = [network.encoder.conv_in, network.decoder.conv_in, network.decoder.conv_out, network.quant_conv]
    for convolution in chain:
        assert isinstance(convolution, nn.Conv2d) and not convolution.bias.any()
        matrix = convolution.weight.flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)  # float32's QR
    assert not before.equal(network.encoder.conv_in.weight)
