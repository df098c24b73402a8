"""The ladder of a training step at toy size on the CPU, and where the time of a kernel is booked."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adv_train.bench.count import flops
from adv_train.errors import UserError
from adv_train.methods import METHODS
from adv_train.second_derivatives.mode import SUPPORTED
from benchmarks.gpu import cli, kernels, ladder, matrix, steps, summary
from benchmarks.gpu.rungs import prepared, rungs
from benchmarks.gpu.stages import Stage
from tests.benchmarks.uncompiled import leave_uncompiled

CPU = torch.device("cpu")
EAGER = ["fp32", "tf32", "bf16", "channels last", "fused optimiser"]
REAL = {
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn": "convolution, matmul",
    "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x64_32x6_nhwc_align8>(": (
        "convolution, matmul"
    ),
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::Copy_Atom<cute::SM90_TMA_LOAD>>>(": (
        "convolution, matmul"
    ),
    "ampere_scudnn_128x64_relu_medium_nn_v1": "convolution, matmul",
    "void wgrad_alg0_engine<float, 128, 5, 5, 3, 3, 3, false, 512>(int, int, int, float const*)": (
        "convolution, matmul"
    ),
    "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>(": "convolution, matmul",
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN": "convolution, matmul",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, float>(": "convolution, matmul",
    "triton_tem_fused_addmm_7": "convolution, matmul",
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512, true, 1, true>(": "normalisation",
    "void cudnn::bn_bw_1C11_kernel_new<float, float, float2, 512, true, 1>(": "normalisation",
    "void at::native::batch_norm_backward_reduce_channels_last_kernel<4, c10::BFloat16, float>(": "normalisation",
    "void at::native::(anonymous namespace)::batch_norm_backward_elemt_channels_last_kernel<4>(": "normalisation",
    "triton_red_fused__native_batch_norm_legit_functional_convolution_2": "normalisation",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3> >(": (
        "elementwise"
    ),
    "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native::sign_kernel_cuda>>(": (
        "elementwise"
    ),
    "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4>(": "elementwise",
    "triton_poi_fused_convolution_relu_3": "elementwise",
    "triton_poi_fused__to_copy_relu_3": "elementwise",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::NormTwoOps<float>>>(": "reductions",
    "void (anonymous namespace)::softmax_warp_forward<float, float, float, 4, true, false>(": "reductions",
    "triton_per_fused_sum_4": "reductions",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<3>, FusedSgdMathFunctor>(": (
        "optimiser"
    ),
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<2>, TernaryOpListFunctor>(": (
        "optimiser"
    ),
    "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true, (cudnnKernelDataType_t)0>(": (
        "copies, layout"
    ),
    "void cudnn::ops::convertTensor_kernel<float, __half, float, (cudnnKernelDataType_t)2>(": "copies, layout",
    "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda(at::TensorIterator&)>(": (
        "copies, layout"
    ),
    "Memcpy DtoD (Device -> Device)": "copies, layout",
    "Memset (Device)": "copies, layout",
    "triton_poi_fused__to_copy_12": "copies, layout",
    "aten::addmm": "convolution, matmul",
    "aten::mkldnn_convolution": "convolution, matmul",
    "aten::native_batch_norm_backward": "normalisation",
    "aten::_to_copy": "copies, layout",
    "aten::add_": "elementwise",
    "aten::sum": "reductions",
    "aten::_fused_sgd_": "optimiser",
    "aten::empty_strided": "other",
    "void at::native::tensor_kernel_scan_innermost_dim<float, std::plus<float> >(": "other",
}


def run(folder: Path) -> dict[str, Any]:
    """Run the stage at toy size and return its rows."""
    assert cli.main(["--device", "cpu", "--quick", "--out", str(folder), "--stages", "ladder"]) == 0
    rows: dict[str, Any] = json.loads((folder / "gpu-ladder.json").read_text(encoding="utf-8"))["rows"]
    return rows


def test_every_rung_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_uncompiled(monkeypatch)
    rows = run(tmp_path)
    page = capsys.readouterr().out
    tops = {"fast-at": ["CUDA graph", "compiled"], "fast-bat": ["CUDA graph"]}  # it differentiates twice
    assert list(rows) == [f"{title}: {rung}" for title, top in tops.items() for rung in (*EAGER, *top)]
    for title in tops:
        graph = rows[f"{title}: CUDA graph"]
        assert graph["capturable"] and "CUDA device" in graph["reason"]
        timed = {rung: rows[f"{title}: {rung}"] for rung in EAGER}
        product = 1.0
        for row in timed.values():
            product *= row["speedup"]
            assert row["speedup_over_first"] == pytest.approx(product, rel=1e-12)
            assert row["speedup_over_first"] == timed["fp32"]["milliseconds"] / row["milliseconds"]
            assert row["epoch_seconds"] == pytest.approx(45_000 / 4 * row["milliseconds"] / 1e3, rel=1e-12)
            assert row["of_matrix_rate"] == pytest.approx(
                row["flops"] / (row["milliseconds"] / 1e3) / row["matrix_rate"], rel=1e-12
            )
            assert math.fsum(row["shares"].values()) == pytest.approx(1, abs=1e-12)
            assert set(row["shares"]) == {*kernels.FAMILIES, "other"} and row["shares"]["convolution, matmul"] > 0
            assert row["kernel_milliseconds"] > 0
        # The switches change no product, except that on a CPU our second derivatives of convolutions, which need fewer
        # products, are for channels last alone (and for no layout with torch 2.7).
        usual, last = ({timed[rung]["flops"] for rung in part} for part in (EAGER[:3], EAGER[3:]))
        assert len(usual) == len(last) == 1
        assert max(last) < min(usual) if title == "fast-bat" and SUPPORTED else last == usual
        assert f"**{title}**" in page and f"* {title}: CUDA graph: not timed, a graph needs a CUDA device" in page
    # Fast-AT is an attack's gradient in the images alone and one in the weights; Fast-BAT differentiates more.
    assert rows["fast-bat: fp32"]["flops"] > rows["fast-at: fp32"]["flops"]
    compiled, below = rows["fast-at: compiled"], rows["fast-at: fused optimiser"]
    assert compiled["speedup"] == below["milliseconds"] / compiled["milliseconds"]
    assert compiled["prepare_seconds"] == 0 and below["prepare_seconds"] is None

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(ladder, "measured", forbidden)
    assert run(tmp_path) == rows
    made, redone = [], {"failure": "made by a test"}
    monkeypatch.setattr(
        ladder, "measured", lambda _, title, rung, *__, **___: made.append((title, rung.name)) or redone
    )
    path = tmp_path / "gpu-ladder.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["rows"]["fast-at: bf16"]
    path.write_text(json.dumps(record), encoding="utf-8")
    run(tmp_path)
    assert made == [("fast-at", "bf16")]


@pytest.mark.parametrize("title", ladder.TITLES)
def test_a_rung_adds_one_switch_to_the_one_before(title: str) -> None:
    name, options = steps.METHODS[title]
    found = {rung.name: rung for rung in rungs(METHODS.create(name, **options))}
    assert list(found)[:6] == [*EAGER, "CUDA graph"] and ("compiled" in found) == (title != "fast-bat")
    # The optimiser of the graph refuses `fused`.
    assert found["CUDA graph"].before == "channels last"
    assert title == "fast-bat" or found["compiled"].before == "fused optimiser"
    for rung in found.values():
        below = found[rung.before].switches if rung.before else {}
        assert sum(below.get(key) != value for key, value in rung.switches.items()) == 1
        assert set(below) <= set(rung.switches)


def test_a_switch_reaches_the_training_step() -> None:
    name, options = steps.METHODS["fast-bat, shifted, 1 step"]
    *_, last = (rung for rung in rungs(METHODS.create(name, **options)) if "accelerate" not in rung.switches)
    trainer, batch = prepared("fast-bat, shifted, 1 step", last.switches, CPU, quick=True)
    assert trainer.state.optimizer.param_groups[0]["fused"] and trainer.state.average is not None
    assert trainer.config.compute.precision == "bf16" and trainer.config.optimizer.clip == 1.0
    kernel = max(trainer.state.model.parameters(), key=torch.numel)
    assert any(
        value.is_contiguous(memory_format=torch.channels_last)
        for value in trainer.state.model.parameters()
        if value.dim() == 4 and not value.is_contiguous()
    )
    before = kernel.detach().clone()
    trainer.step(batch)
    assert not torch.equal(kernel, before)


def test_without_a_compiler_a_rung_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Any) -> Any:
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", absent)
    *_, compiled = rungs(METHODS.create("fast-at"))
    stage = Stage(tmp_path / "gpu-ladder.json", CPU, quick=True)
    with pytest.raises(UserError, match=r"no C\+\+ compiler here.*install a C\+\+"):
        ladder.measured(stage, "fast-at", compiled, CPU, quick=True)


def test_a_time_of_another_device_is_no_factor(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "gpu-ladder.json", CPU, quick=True)
    _, second, *_ = rungs(METHODS.create("fast-at"))
    assert ladder._speedups(stage, "fast-at", second, 2.0) == {"speedup": None, "speedup_over_first": None}
    stage.keep("fast-at: fp32", {"milliseconds": 6.0})
    assert ladder._speedups(stage, "fast-at", second, 2.0) == {"speedup": 3.0, "speedup_over_first": 3.0}
    stage.rows["fast-at: fp32"]["on"] = "another"
    assert ladder._speedups(stage, "fast-at", second, 2.0) == {"speedup": None, "speedup_over_first": None}


def test_a_product_of_matrices_is_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7
    monkeypatch.setattr(matrix, "interleaved", lambda *_, **__: [[0.5, 0.25, 8.0]])
    for precision in ("fp32", "bf16"):
        assert matrix.rate(precision, CPU) == 2 * 128**3 / 0.5


@pytest.mark.parametrize(("kernel", "family"), REAL.items(), ids=range(len(REAL)))
def test_a_kernel_is_known_by_its_name(kernel: str, family: str) -> None:
    assert kernels.family(kernel) == family


def event(name: str, device: str, microseconds: float, named_by_program: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        is_user_annotation=named_by_program,
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        self_cpu_time_total=microseconds / 2,
    )


def test_time_is_that_of_the_device_without_ranges_that_span_kernels() -> None:
    events = [
        event("nvjet_tst_192x192", "CUDA", 7.0),
        event("Memcpy DtoD (Device -> Device)", "CUDA", 2.0),
        event("Memcpy HtoD (Pinned -> Device)", "CUDA", 1.0),
        event("Optimizer.step#SGD.step", "CUDA", 99.0, named_by_program=True),
        event("aten::mm", "CPU", 4.0),
    ]
    zero = dict.fromkeys((*kernels.FAMILIES, "other"), 0.0)
    assert kernels.summed(events, on_gpu=True) == {**zero, "convolution, matmul": 7.0, "copies, layout": 3.0}
    assert kernels.summed(events, on_gpu=False) == {**zero, "convolution, matmul": 2.0}


def test_what_the_profiler_did_not_see_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "profile", lambda **_: nullcontext(SimpleNamespace(events=list)))
    row = ladder._kernels(lambda: None, CPU, 1)
    assert row["shares"] is None and "CUPTI" in row["unseen"]
    timed = {"milliseconds": 2.0, "images_per_second": 64e3, "epoch_seconds": 0.7, "speedup": None}
    timed |= {"speedup_over_first": 12.0, "prepare_seconds": 3.25, "peak_mib": 801.0}
    timed |= {"flops_per_second": 4.56e14, "of_matrix_rate": 0.617, "on": "a card", "torch": "3", **row}
    rows = {
        "fast-at: compiled": timed,
        "fast-at: CUDA graph": {"failure": "UserError: no", "on": "a card", "torch": "3"},
    }
    page = summary.of({"ladder": SimpleNamespace(rows=rows)})
    assert "| compiled | 2.00 | 64000 | 0.70 | – | 12.00 | 3.2 | 801 | 456 | 61.7 % |" in page
    assert "share of device time" not in page
    assert "* fast-at: CUDA graph: UserError: no" in page and f"* fast-at: compiled: {row['unseen']}" in page
    timed |= {"shares": {"elementwise": 0.75, "other": 0.25}, "kernel_milliseconds": 1.5}
    page = summary.of({"ladder": SimpleNamespace(rows=rows)})
    assert "| compiled | 1.50 | 75.0 % | 25.0 % |" in page
