import pytest
import torch

from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.grids import make_grid
from safelight.diffusion.parameterization import PARAMETERIZATIONS, edm
from safelight.diffusion.schedule import noise_schedule
from safelight.errors import InputError

SD = noise_schedule()


class Listener(torch.nn.Module):
    """A network of one parameter that notes what it is given."""

    def __init__(self, dtype=torch.float32, channels=4):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.channels = channels

    def forward(self, x, timesteps, context=None, *, class_labels=None):
        self.heard = x, timesteps, context, class_labels
        return x[:, : self.channels] * self.weight


def test_the_three_precisions():
    network = Listener(torch.bfloat16)
    condition = Condition(context=torch.zeros(1, 7, 3), class_labels=torch.tensor([4]))
    x0 = Denoiser(network, SD)(torch.randn(2, 4, 5, 5), 3.0, condition)
    x, timesteps, context, class_labels = network.heard
    assert x0.dtype == torch.float32
    assert x.dtype == context.dtype == torch.bfloat16
    assert timesteps.dtype == torch.float32 and timesteps.tolist() == [pytest.approx(SD.t(3.0))] * 2
    assert context.shape == (2, 7, 3) and class_labels.tolist() == [4, 4]


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_puts_the_table_to_use(name):
    x, sigma, kind = torch.randn(2, 4, 5, 5), 1.7, PARAMETERIZATIONS[name]
    c_skip, c_out, c_in = kind.coefficients(sigma)
    expected = c_skip * x + c_out * 0.5 * (c_in * x)
    torch.testing.assert_close(Denoiser(Listener(), SD, kind)(x, sigma), expected)


def test_concat_goes_behind_the_scaled_latent():
    network, x, concat = Listener(), torch.randn(2, 4, 5, 5), torch.randn(1, 5, 5, 5)
    Denoiser(network, SD)(x, 2.0, Condition(concat=concat))
    seen = network.heard[0]
    torch.testing.assert_close(seen[:, :4], x / 5**0.5)
    assert torch.equal(seen[:, 4:], concat.expand(2, 5, 5, 5))


def test_timesteps_are_exact_on_the_grid():
    grid = make_grid(SD, 7, "linspace")  # linear interpolation, while the schedule's is logarithmic
    denoiser = Denoiser(Listener(), SD).on(grid)
    for sigma, t in zip(grid.sigmas, grid.timesteps, strict=False):
        assert denoiser.timestep(sigma) == t
    assert denoiser.timestep(3.21) == SD.t(3.21)
    assert Denoiser(Listener(), SD).timestep(grid.sigmas[1]) != grid.timesteps[1]


def test_edm_networks_hear_the_logarithm():
    assert Denoiser(Listener(), SD, edm()).timestep(2.0) == pytest.approx(0.1733, abs=1e-4)


def test_a_plain_function_will_do_in_any_dtype():
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    x0 = Denoiser(lambda x, t, context=None, class_labels=None: 0.5 * x, SD)(x, 1.0)
    assert x0.dtype == torch.float64
    torch.testing.assert_close(x0, x - 0.5 * x / 2**0.5)


def test_a_condition_for_other_pictures_is_refused():
    with pytest.raises(InputError, match="2 conditions for 3 pictures"):
        Denoiser(Listener(), SD)(torch.zeros(3, 4, 5, 5), 1.0, Condition(context=torch.zeros(2, 7, 3)))
