"""Analysis of compiled programs on small examples, the expected figures, and errors on the command line."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, refused
from program_text import IMAGES, KERNEL, MAP, STEP

from benchmarks.lab import gpu_program, hlo, kernels
from benchmarks.lab.gpu_specs import TARGETS
from benchmarks.lab.program_figures import Case, program_figures


def edited(old, new):
    assert old in STEP
    return hlo.parse(STEP.replace(old, new))


def test_kernels_and_their_bytes():
    found = [
        (kernel.instruction.name, kernel.kind, kernel.bytes)
        for kernel in kernels.kernels(hlo.parse(STEP))
    ]
    assert found == [
        ("k", "copy of weights", (4 + 2) * KERNEL),
        ("conv", "convolution", 2 * (IMAGES + KERNEL + MAP)),
        ("sums", "reduction", 2 * MAP + 4 * 16),
        ("z", "elementwise", 2 * 2 * MAP + 4 * 16),
        ("turned", "copy of activations", 2 * 2 * MAP),
        ("kcopy", "copy of weights", 2 * 4 * KERNEL),
        ("grad", "convolution", 2 * (IMAGES + KERNEL + MAP)),
        ("total", "optimizer", 3 * 4 * 16),
    ]


def test_good_convolutions_raise_no_figure():
    found = program_figures(hlo.parse(STEP))
    assert found["convolutions"] == 2
    assert found["activation_copies"] == 1
    for name in ("float32_convolutions", "convolutions_not_nhwc", "convolutions_without_cudnn"):
        assert found[name] == 0


@pytest.mark.parametrize(
    ("old", "new", "figure"),
    [
        ("%images = bf16", "%images = f32", "float32_convolutions"),
        ("%images = bf16[4,10,10,8]{3,2,1,0}", "%images = bf16[4,10,10,8]{2,1,3,0}", "convolutions_not_nhwc"),
        ("dim_labels=b01f_o01i->b01f, custom_call_target=\"__cudnn$convForward\"",
         "dim_labels=bf01_oi01->bf01, custom_call_target=\"__cudnn$convForward\"", "convolutions_not_nhwc"),
        ("ROOT %m = bf16[4,10,10,16]{3,2,1,0} maximum(%p.2, %cast.1)",
         "ROOT %m = bf16[4,10,10,16]{3,2,1,0} convolution(%p.2, %cast.1), dim_labels=b01f_o01i->b01f",
         "convolutions_without_cudnn"),
    ],
)  # fmt: skip
def test_bad_convolutions_are_counted(old, new, figure):
    assert program_figures(edited(old, new))[figure] >= 1


LOOP = """
HloModule jit_loop, is_scheduled=true

%fused_slice (p: f32[5,100], i: s32[]) -> f32[100] {
  %p = f32[5,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = f32[1,100]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,100}
  %b = f32[100]{0} bitcast(%d)
  ROOT %n = f32[100]{0} negate(%b)
}

%fused_update (p.1: f32[5,100], u: f32[100], j: s32[]) -> f32[5,100] {
  %p.1 = f32[5,100]{1,0} parameter(0)
  %u = f32[100]{0} parameter(1)
  %j = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %wide = f32[1,100]{1,0} bitcast(%u)
  ROOT %put = f32[5,100]{1,0} dynamic-update-slice(%p.1, %wide, %j, %zero.1)
}

%body (s: (s32[], f32[5,100], f32[5,100])) -> (s32[], f32[5,100], f32[5,100]) {
  %s = (s32[], f32[5,100]{1,0}, f32[5,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s), index=0
  %x = f32[5,100]{1,0} get-tuple-element(%s), index=1
  %y = f32[5,100]{1,0} get-tuple-element(%s), index=2
  %one = f32[100]{0} fusion(%x, %i.1), kind=kLoop, calls=%fused_slice
  %new = f32[5,100]{1,0} fusion(%y, %one, %i.1), kind=kLoop, calls=%fused_update
  ROOT %out = (s32[], f32[5,100]{1,0}, f32[5,100]{1,0}) tuple(%i.1, %x, %new)
}

ENTRY %main (a: f32[5,100]) -> f32[5,100] {
  %a = f32[5,100]{1,0} parameter(0)
  %start = s32[] constant(0)
  %state = (s32[], f32[5,100]{1,0}, f32[5,100]{1,0}) tuple(%start, %a, %a)
  %w = (s32[], f32[5,100]{1,0}, f32[5,100]{1,0}) while(%state), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"},"dynamic_variable_tuple_indices":[]}
  ROOT %end = f32[5,100]{1,0} get-tuple-element(%w), index=2
}
"""  # noqa: E501


def test_a_loop_body_counts_per_iteration_and_only_with_its_slices():
    found = [(kernel.times, kernel.bytes) for kernel in kernels.kernels(hlo.parse(LOOP))]
    assert found == [(5, 400 + 4 + 400), (5, 400 + 4 + 400)]


REDUCED = """
HloModule jit_all, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

ENTRY %main (x: f32[8], y: bf16[1000], small: bf16[8]) -> f32[8] {
  %small = bf16[8]{0} parameter(2)
  %x = f32[8]{0} parameter(0)
  %y = bf16[1000]{0} parameter(1)
  %s0 = f32[8]{0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%sum, backend_config={"collective_backend_config":{"is_sync":true}}
  %d0 = f32[8]{0} all-reduce-done(%s0)
  %s1 = (bf16[8]{0}, f32[8]{0}) all-reduce-start(%small, %d0), replica_groups=[1,8]<=[8], to_apply=%sum
  %f = f32[8]{0} fusion(%d0), kind=kLoop, calls=%fused
  %d1 = (bf16[8]{0}, f32[8]{0}) all-reduce-done(%s1)
  %s2 = bf16[1000]{0} all-reduce-start(%y), replica_groups=[1,8]<=[8], to_apply=%sum
  %d2 = bf16[1000]{0} all-reduce-done(%s2)
  ROOT %plain = f32[8]{0} all-reduce(%f), replica_groups=[1,8]<=[8], to_apply=%sum
}
"""  # noqa: E501


def test_collectives_that_no_kernel_hides_are_exposed():
    found = kernels.collectives(hlo.parse(REDUCED))
    assert [one.bytes for one in found] == [32, 48, 2000, 32]
    assert [one.exposed for one in found] == [True, False, True, True]
    assert found[1].beside == 2 * 32
    assert found[1].dtypes == {"bf16", "f32"}
    figures = program_figures(hlo.parse(REDUCED))
    assert figures["collectives"] == 4
    assert figures["exposed_bytes"] == 2064
    assert figures["kernels_by_kind"]["collective"] == 4


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing")


def test_only_worse_figures_are_reported():
    case = Case("resnet50")
    expected = dict.fromkeys(gpu_program.LIMITS, 100)
    assert gpu_program.slips(case, expected | {"bytes": 101, "collectives": 99}, expected) == []
    (line,) = gpu_program.slips(case, expected | {"bytes": 102}, expected)
    assert line == f"{case}: bytes: 102, expected at most 100 and 1%"
    (line,) = gpu_program.slips(case, expected | {"float32_convolutions": 101}, expected)
    assert "float32 convolutions: 101, expected at most 100" in line


def test_expected_figures_of_another_jax_version_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_program, "EXPECTED", tmp_path / "expected.json")
    assert gpu_program.load_expected() == {}
    case = Case("resnet50", settings=("model.norm_scope=local",))
    figures = dict.fromkeys((*gpu_program.LIMITS, "bytes_by_kind", "collective_bytes_by_dtype"), 1)
    gpu_program.store({case: figures | {"compile_seconds": 3.0}})
    assert gpu_program.load_expected() == {case: figures}
    stored = json.loads(gpu_program.EXPECTED.read_text())
    gpu_program.EXPECTED.write_text(json.dumps(stored | {"jax": "0.1"}))
    with refused(gpu_program.EXPECTED) as caught:
        gpu_program.load_expected()
    assert "jax 0.1," in caught.value.problem
    assert gpu_program.jax.__version__ in caught.value.problem


def test_a_target_is_written_in_the_compilers_format():
    text = TARGETS["h100"].text()
    assert "  memory_bandwidth: 3352320000000\n" in text
    assert "  cuda_compute_capability { major: 9 }\n" in text
    assert text.count("{") == text.count("}") == 4


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--models", "resnet19"], ["model.name='resnet19': ", "'resnet1"]),
        (["--gpus", "2x0"], ["--gpus=2x0: "]),
        (["--targets", "v100"], ["--targets=v100: ", "'h100'"]),
        (["--settings", "norm_scope=local"], ["--settings=norm_scope=local: "]),
        (["--settings", "model.norm_scope=here"], ["model.norm_scope='here': "]),
        (["--models", "resnet19", "--check"], ["--models=resnet19: ", "'resnet18'"]),
        (["--models", "resnet18", "resnet34", "--plain_flax"], ["--models=resnet34: ", "--plain_flax"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments, names, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_program", *arguments])
    monkeypatch.setattr(gpu_program, "absent", lambda *packages: [])
    monkeypatch.setattr(gpu_program.jax.config, "update", lambda *setting: None)
    monkeypatch.setenv("FLAX_RESNET_OPS", "plain")
    # The expected figures are only valid for the JAX version that they were measured with.
    expected = json.loads(gpu_program.EXPECTED.read_text())
    monkeypatch.setattr(gpu_program.jax, "__version__", expected["jax"])
    assert gpu_program.main() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for name in names:
        assert name in line


def test_the_error_for_a_missing_compiler_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_program"])
    monkeypatch.setattr(gpu_program, "absent", lambda *packages: list(packages))
    assert gpu_program.main() == 2
    assert "pip install --no-deps jax-cuda12-plugin==" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_programs_have_the_expected_figures():
    pytest.importorskip("jax_cuda12_plugin")
    command = [sys.executable, "-m", "benchmarks.lab.gpu_program", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
