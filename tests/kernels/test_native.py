"""The C kernels beside their twins: on random arguments, under sanitizers, in many threads, at the edges."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzz import Fuzz, built, variant

from safelight import kernels
from safelight.kernels import build, choice, gradients, twins
from safelight.kernels.native import Kernels

CASES = 60  # of each variant; `python bench/fuzz_kernels.py` is for thousands
runs_here = pytest.mark.skipif(
    build.compiler() is None or not {"avx2", "fma"} <= build.cpu_features(),
    reason="no C compiler, or no CPU with AVX2: there the twins compute, which have tests of their own",
)
pytestmark = runs_here
# Every variant that can run: on a CPU with AVX-512 the wide ones themselves, on any other their code, emulated.
FEATURES = build.cpu_features()
HERE = [v.name for v in (*build.VARIANTS, *build.EMULATED) if v.features <= FEATURES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def library(folder):
    """A variant's kernels for all tests that ask for it: as the package has them, or compiled once."""
    known = {}

    def get(name: str) -> Kernels:
        if name not in known:
            ready = build.find(variant(name))
            more = ["-O1"] if "emulated" in name else []  # else it compiles for long
            known[name] = Kernels(variant(name), ready) if ready else built(name, folder, more)
        return known[name]

    return get


@pytest.fixture(autouse=True)
def threads():
    """Fuzzing changes torch's number of threads; give it back."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture
def avx2(library):
    return library("avx2")


@pytest.mark.parametrize("name", HERE)
def test_kernels_agree_with_their_twins_on_random_arguments(name, library):
    k = library(name)
    for case in Fuzz(k, seed=1).cases(CASES if "emulated" not in name else CASES // 4):
        case.check(k.dtype)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Run a Python program under AddressSanitizer and UBSan; its last argument is a folder for its library."""
    runtime = subprocess.run([*build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(runtime.stdout.strip()).is_file():
        pytest.skip("the compiler has no AddressSanitizer")
    folder = tmp_path_factory.mktemp("sanitized")
    env = os.environ | {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    return lambda *program: subprocess.run(
        [sys.executable, *map(str, program), str(folder)], env=env, capture_output=True, text=True
    )


def test_random_arguments_touch_no_foreign_memory(sanitized):
    run = sanitized(Path(__file__).with_name("fuzz.py"), "avx2", CASES, 2, "--sanitize")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_sanitizer_sees_what_it_is_for(sanitized):
    """A kernel that is told of one pixel too many reads beyond its input: the run above must be able to fail."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; from pathlib import Path; from fuzz import SANITIZE, Kernels, built\n"
        "k = built('avx2', Path(sys.argv[2]), SANITIZE)\n"
        "x = torch.zeros(1, 100_000); y = torch.zeros(1, 200_000)\n"
        "k._run('group_norm', x, None, None, y, 1, 12_501, 8, 1, 1e-5, False)\n"
    )
    run = sanitized("-c", program, Path(__file__).parent)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr


def layers(k: Kernels, seed: int) -> list[torch.Tensor]:
    """One result of each kernel."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(2, 32, 21, 18, generator=g), torch.randn(48, 32, 3, 3, generator=g)
    q = torch.randn(2, 3, 130, 40, generator=g)
    m, n = torch.randn(70, 64, generator=g), torch.randn(96, 64, generator=g)
    norm = k.group_norm(x, 4, None, None, 1e-5, silu=True)
    whole, scale = twins.quantize(n)
    eight = k.linear(m, whole.to(torch.int8), scale=scale[:, 0])
    convolutions = [k.conv3x3(x, w), k.conv3x3_weights(x, x)]
    return [*convolutions, norm, k.attention(q, q, q), k.linear(m, n), k.linear(m, n, gate=True), eight]


def test_results_do_not_depend_on_the_number_of_threads(avx2):
    torch.set_num_threads(1)
    one = layers(avx2, 0)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        for a, b in zip(one, layers(avx2, 0), strict=True):
            assert torch.equal(a, b)


def test_callers_in_several_threads_do_not_disturb_each_other(avx2):
    alone = [layers(avx2, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: layers(avx2, i % 4), range(32)))
    for i, results in enumerate(together):
        for a, b in zip(alone[i % 4], results, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", HERE)
def test_what_is_not_finite_passes_through(name, value, library):
    """Wherever the twin gives NaN or infinity the kernel gives neither a number nor silence."""
    k = library(name)
    dtype, c = k.dtype, 2 * k.lanes
    x, w = torch.randn(1, c, 9, 9), torch.randn(c, c, 3, 3)
    x[0, 3, 4, 4] = value
    q = torch.randn(1, 1, 40, 16)
    bad = q.clone()
    bad[0, 0, 5, 3] = value
    x, w, q, bad = (t.to(dtype) for t in (x, w, q, bad))
    rows, matrix = x[0].flatten(1)[:, : 2 * k.lanes].contiguous(), w[..., 0, 0].contiguous()
    rows = torch.nn.functional.pad(rows, (0, max(0, 2 * k.lanes - rows.shape[1])))
    ones, worth = torch.ones_like(matrix, dtype=torch.int8), torch.ones(len(matrix))
    pairs = [
        (k.conv3x3(x, w), twins.conv3x3(x, w)),
        (k.conv3x3_weights(x, x), twins.conv3x3_weights(x, x)),
        (k.group_norm(x, 2, None, None, 1e-5), twins.group_norm(x, 2, None, None, 1e-5)),
        (k.attention(bad, q, q), twins.attention(bad, q, q)),
        (k.attention(q, bad, q), twins.attention(q, bad, q)),
        (k.attention(q, q, bad), twins.attention(q, q, bad)),
        (k.attention(bad, q, q, rough=True), twins.attention(bad, q, q)),
        (k.attention(q, bad, q, rough=True), twins.attention(q, bad, q)),
        (k.attention(q, q, bad, rough=True), twins.attention(q, q, bad)),
        (k.linear(rows, matrix), twins.linear(rows, matrix)),
        (k.linear(rows, matrix, gate=True), twins.geglu(rows, matrix)),
        (k.linear(rows, ones, scale=worth), twins.linear(rows, ones, scale=worth)),
    ]
    for i, (ours, theirs) in enumerate(pairs):
        if theirs.isnan().any() or theirs.isinf().any():
            assert not ours[theirs.isnan()].isfinite().any(), i
            assert not ours[theirs.isinf()].isfinite().any(), i


@pytest.mark.parametrize("name", HERE)
def test_causal_attention_sees_nothing_that_comes_later(name, library):
    k = library(name)
    q, key, v = (torch.randn(1, 2, 77, 16).to(k.dtype) for _ in range(3))
    other, others = key.clone(), v.clone()
    other[:, :, 40:], others[:, :, 40:] = 100, 100
    before, after = k.attention(q, key, v, causal=True), k.attention(q, other, others, causal=True)
    assert torch.equal(before[:, :, :40], after[:, :, :40]) and not torch.equal(before[:, :, 40:], after[:, :, 40:])


def test_what_a_kernel_does_not_take_the_twin_computes(monkeypatch, avx2):
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2 if dtype == torch.float32 else None)
    for channels in (3, 8, 16):
        x, w = torch.randn(1, channels, 5, 5), torch.randn(16, channels, 3, 3)
        torch.testing.assert_close(kernels.conv3x3(x, w, fast=True), twins.conv3x3(x, w), rtol=1e-4, atol=1e-4)
    x, w = torch.randn(3, 1024), torch.randn(512, 1024)
    whole, scale = (t.squeeze(-1) for t in twins.quantize(w))
    eight = {"scale": scale, "act": "gelu"}  # this kernel knows no activation
    ours, theirs = (f(x, whole.to(torch.int8), **eight) for f in (partial(kernels.linear, fast=True), twins.linear))
    assert torch.equal(ours, theirs)
    x = torch.randn(1, 16, 5, 5, dtype=torch.float64)
    assert torch.equal(kernels.group_norm(x, 4, None, None, 1e-5, fast=True), twins.group_norm(x, 4, None, None, 1e-5))
    with pytest.raises(RuntimeError, match="channels"):  # torch's own words
        kernels.conv3x3(torch.randn(1, 8, 5, 5), torch.randn(16, 16, 3, 3), fast=True)


AROUND = {
    "x": (2, 32, 6, 9),
    "weight": (64, 64, 3, 3),
    "bias": (64,),
    "beside": (2, 32, 6, 9),
    "shift": (2, 64),
    "residual": (2, 64, 12, 18),
}


def gradients_of(convolution, arguments: dict[str, torch.Tensor], to=lambda t: t) -> dict[str, torch.Tensor]:
    """What a loss changes by with each argument that wants a gradient, and the result itself."""
    copies = {name: to(t.detach()).requires_grad_(t.requires_grad) for name, t in arguments.items()}
    y = convolution(**copies, up=True, silu=True)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return {"y": y.detach(), **{name: t.grad for name, t in copies.items() if t.grad is not None}}


@pytest.mark.parametrize("name", [n for n in HERE if variant(n).dtype == "float32"])
@pytest.mark.parametrize("wanted", [tuple(AROUND), ("x", "beside"), ("weight",), ("bias", "shift"), ("residual",)])
def test_a_convolution_has_the_gradients_of_its_twin(name, wanted, library, monkeypatch):
    """Within 1e-5 of the norm, as `fuzz` has it, of gradients in float64; and no others than those wanted."""
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: library(name))
    monkeypatch.setattr(gradients.Conv3x3, "apply", counted(gradients.Conv3x3.apply, calls := []))
    draw = torch.Generator().manual_seed(7)
    arguments = {key: torch.randn(shape, generator=draw) for key, shape in AROUND.items()}
    arguments = {key: t.requires_grad_(key in wanted) for key, t in arguments.items()}
    ours = gradients_of(partial(kernels.conv3x3, fast=True), arguments)
    exact = gradients_of(twins.conv3x3, arguments, torch.Tensor.double)
    assert ours.keys() == exact.keys() == {"y", *wanted}
    assert calls == [1]
    for key, gradient in exact.items():
        assert ours[key].shape == gradient.shape
        assert (ours[key] - gradient).norm() <= 1e-5 * gradient.norm(), key


def counted(function, calls: list[int]):
    def call(*arguments):
        calls.append(1)
        return function(*arguments)

    return call


def test_a_gradient_that_is_broadcast_is_summed(avx2, monkeypatch):
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2)
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3)
    around = {"shift": torch.randn(1, 16), "residual": torch.randn(1, 16, 8, 8)}
    results = []
    for convolution in (partial(kernels.conv3x3, fast=True), twins.conv3x3):
        copies = {name: t.clone().requires_grad_() for name, t in around.items()}
        convolution(x, weight, **copies).square().sum().backward()
        results.append([t.grad for t in copies.values()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_what_fits_nowhere_is_refused_with_gradients_too(avx2, monkeypatch):
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2)
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3, requires_grad=True)
    for around in ({"shift": torch.randn(3, 16)}, {"residual": torch.randn(2, 16, 7, 8)}):
        with pytest.raises(RuntimeError, match="size"):  # torch's own words
            kernels.conv3x3(x, weight, **around, fast=True)


def test_other_gradients_come_from_the_twins(monkeypatch, avx2):
    """Where a kernel has none: convolutions whose channels in are not of twice the lanes, and all other operations."""
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2)
    x, w = torch.randn(1, 24, 9, 9, requires_grad=True), torch.randn(16, 24, 3, 3, requires_grad=True)
    q = torch.randn(1, 2, 300, 40, requires_grad=True)
    for operation, arguments in [
        ("conv3x3", (x, w)),
        ("attention", (q, q, q)),
        ("linear", (q, torch.randn(1024, 40, requires_grad=True))),
        ("geglu", (q, torch.randn(64, 40, requires_grad=True))),
    ]:
        ours = getattr(kernels, operation)(*arguments, fast=True)
        theirs = getattr(twins, operation)(*arguments)
        assert torch.equal(ours, theirs)
        for a, b in zip(*(torch.autograd.grad(y.sum(), set(arguments)) for y in (ours, theirs)), strict=True):
            assert torch.equal(a, b)


def test_without_gradients_there_is_no_graph(monkeypatch, avx2):
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2)
    x, w = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3, requires_grad=True)
    assert kernels.conv3x3(x, w, fast=True).requires_grad
    with torch.no_grad():
        assert not kernels.conv3x3(x, w, fast=True).requires_grad


def test_autocast_chooses_its_own_precision(monkeypatch, avx2):
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2 if dtype == torch.float32 else None)
    x, w = torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.conv3x3(x, w, fast=True).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(2, 8, 3, 11), (1, 24, 5, 1), (2, 8, 1, 7)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 0, 1)])
def test_a_convolution_of_few_pixels_reads_any_order_of_memory(size, order, avx2):
    """Channels last by another name, say: then the border of zeros is made in that order as well."""
    x = torch.randn(*(size[i] for i in order)).permute(*(order.index(i) for i in range(4)))
    weight = torch.randn(16, size[1], 3, 3)
    torch.testing.assert_close(avx2.conv3x3_of_few(x, weight), twins.conv3x3(x, weight), rtol=1e-4, atol=1e-4)


def test_without_fast_the_twins_compute():
    x, w = torch.randn(1, 16, 5, 5), torch.randn(16, 16, 3, 3)
    assert torch.equal(kernels.conv3x3(x, w), twins.conv3x3(x, w))


def test_the_switch_turns_them_off(monkeypatch):
    monkeypatch.setenv(choice.SWITCH, "off")
    assert choice.kernels_for(torch.float32) is None
    assert {path for paths in choice.report().values() for path in paths.values()} == {"torch: SAFELIGHT_KERNELS=off"}


@pytest.fixture
def afresh(monkeypatch, tmp_path):
    """As on a machine where no library has been built; its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "PACKAGE_FOLDER", tmp_path / "none")
    choice._loaded.clear()
    yield tmp_path
    choice._loaded.clear()


def broken_compiler(folder):
    """Writes half a library, and fails."""
    path = folder / "broken-cc"
    path.write_text('#!/bin/sh\necho half > "$PWD/attention.o"\necho "no such instruction" >&2\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("compiler", ["none", "broken", "nowhere to write"])
def test_where_no_library_can_be_made_torch_computes_and_the_report_says_why(compiler, afresh, monkeypatch):
    if compiler == "nowhere to write":
        (afresh / "safelight").write_text("a file where the folder should be")
    else:
        monkeypatch.setenv("CC", "no-such-compiler" if compiler == "none" else str(broken_compiler(afresh)))
    assert choice.kernels_for(torch.float32) is None
    x, w = torch.randn(1, 16, 32, 32), torch.randn(16, 16, 3, 3)
    assert torch.equal(kernels.conv3x3(x, w, fast=True), twins.conv3x3(x, w))
    why = {"none": "there is no C compiler", "broken": "no such instruction", "nowhere to write": "safelight"}[compiler]
    assert why in choice.report()["float32"]["conv3x3"]
    assert not [*afresh.rglob("*.so")] and not [*afresh.rglob("*.o")]


def test_two_processes_may_build_at_once(tmp_path):
    """Each compiles in a folder of its own, and renames: whoever is last puts the same library there."""
    program = "import sys; from pathlib import Path; from safelight.kernels import build\n" \
              "print(build.build(build.VARIANTS[-1], Path(sys.argv[1]), ['-O0']))"  # fmt: skip
    command = [sys.executable, "-c", program, tmp_path]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert paths == {str(path) for path in tmp_path.iterdir()}
    k = Kernels(build.VARIANTS[-1], Path(paths.pop()))
    assert torch.isfinite(k.group_norm(torch.randn(1, 16, 4, 4), 4, None, None, 1e-5)).all()


def test_libraries_are_built_once_and_renewed_with_their_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "PACKAGE_FOLDER", tmp_path / "none")
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    v = variant("avx2")
    assert build.find(v) is None
    path = build.build(v, build.cache_folder())
    assert build.find(v) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing else is left behind
    changed = tmp_path / "c"
    changed.mkdir()
    for file in build.SOURCES.iterdir():
        (changed / file.name).write_bytes(file.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCES", changed)
    assert build.find(v) is None


AVX2 = {"avx2", "fma"}
WIDE = AVX2 | {"avx512f", "avx512vl", "avx512bw", "avx512dq"}


@pytest.mark.parametrize(
    ("features", "names"),
    [
        (set(), []),
        ({"avx2"}, []),
        (AVX2, ["avx2_bf16", "avx2"]),
        (AVX2 | {"avx512f"}, ["avx2"]),  # AVX-512 without all that the wide kernels need; torch's bfloat16 is wider
        (WIDE, ["avx512", "avx2"]),
        (WIDE | {"avx512_vnni"}, ["avx512_vnni", "avx512", "avx2"]),
        (WIDE | {"avx512_vnni", "avx512_bf16"}, ["avx512_bf16", "avx512_vnni", "avx512", "avx2"]),
        (
            WIDE | {"avx512_vnni", "avx512_bf16", "amx_bf16"},
            ["avx512_vnni", "avx512", "avx2"],
        ),  # torch multiplies bfloat16 by AMX
    ],
)
def test_only_what_the_cpu_has_is_chosen(features, names, monkeypatch):
    monkeypatch.setattr(build, "cpu_features", lambda: frozenset(features))
    assert [v.name for v in build.supported()] == names


@pytest.mark.parametrize("name", [v.name for v in build.VARIANTS])
def test_every_variant_compiles(name, tmp_path):
    """Those that this CPU cannot run as well: they are shipped in wheels. Loading one runs none of its code."""
    library = Kernels(variant(name), build.build(variant(name), tmp_path, ["-O0"]))
    convolutions = {"conv3x3", "conv3x3_up", "conv3x3_rough", "conv3x3_weights"}
    others = {"attention", "attention_rough", "group_norm", "linear", "linear_int8"}
    assert set(library._calls) == convolutions | others


@pytest.mark.parametrize(
    ("side", "down", "light", "heavy"),
    [
        (4, False, None, "conv3x3_of_few"), (8, False, "conv3x3", "conv3x3"), (9, True, None, "conv3x3_of_few"),
        (32, True, None, None),
    ],
)  # fmt: skip
def test_each_convolution_goes_where_it_is_the_fastest(side, down, light, heavy, monkeypatch, avx2):
    """Of few tiles it is torch's, or with many weights a linear layer in C; else Winograd's, but with stride 2."""
    monkeypatch.setattr(kernels, "kernels_for", lambda dtype: avx2)
    taken = []
    for name in ("conv3x3", "conv3x3_of_few"):
        call = getattr(avx2, name)
        monkeypatch.setattr(avx2, name, lambda *a, _call=call, _name=name, **k: taken.append(_name) or _call(*a, **k))
    w, x = torch.randn(16, 16, 3, 3), torch.randn(1, 16, side, side)
    for path, least in ((light, choice.HEAVY), (heavy, w.numel())):
        monkeypatch.setattr(choice, "HEAVY", least)
        ours, theirs = kernels.conv3x3(x, w, down=down, fast=True), twins.conv3x3(x, w, down=down)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert taken == ([] if path is None else [path])
        taken.clear()


def test_each_operation_pays_where_it_is_the_fastest(avx2):
    assert choice.pays(avx2, "linear", 2, weights=choice.LARGE)
    assert not choice.pays(avx2, "linear", 10_000, weights=choice.LARGE - 1)
    assert choice.pays(avx2, "attention", 4096, head=40) and not choice.pays(avx2, "attention", 4096, head=80)
