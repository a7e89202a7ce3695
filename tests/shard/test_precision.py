"""What is stored and computed in follows from the device, every dtype works, and bytes are those held."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shard.cpu import LEVELS, Cpu
from shard.precision import DTYPES, cpu_precision, cuda_precision, precision_of, usable_cpu
from tests.shard.driving import generate, make_runner, prompts_of

KV_TYPES = ("float32", "int8")
FEATURES = [feature for level in LEVELS for feature in level.features]


def x86(*features: str) -> Cpu:
    return Cpu("x86_64", frozenset(features))


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch):
    """`onednn(bf16, fp16)` lets oneDNN say what it can do."""

    def say(bf16: bool, fp16: bool = False) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fp16)

    return say


@pytest.mark.parametrize(
    ("cpu", "has_bf16", "dtype", "expected"),
    [
        (x86(*FEATURES), True, "auto", "bfloat16"),
        (x86(*FEATURES[:-1]), True, "auto", "bfloat16_float32"),  # AVX-512 that emulates them
        (x86("avx_ne_convert"), True, "auto", "bfloat16"),
        (x86("avx2"), False, "auto", "bfloat16_float32"),
        (x86("avx2"), False, "bfloat16", "bfloat16_float32"),
        (x86(*FEATURES), True, "float16", "float16_float32"),
        (x86("avx2"), False, "float32", "float32"),
        (Cpu("aarch64", frozenset()), True, "auto", "bfloat16"),
        (Cpu("aarch64", frozenset()), False, "auto", "bfloat16_float32"),
    ],
)
def test_a_cpu_computes_in_what_it_has_products_for(
    onednn, cpu: Cpu, has_bf16: bool, dtype: str, expected: str
):
    onednn(has_bf16)
    assert cpu_precision(cpu, dtype).label == expected


@pytest.mark.parametrize(
    ("capability", "name", "keeps"),
    [("AVX512", "avx512_bf16", True), ("AVX2", "avx2", False), ("NEW", "avx512_bf16", True)],
)
def test_a_cpu_is_no_more_than_torch_was_told(monkeypatch: pytest.MonkeyPatch, capability, name, keeps):
    monkeypatch.setattr("shard.precision.this_cpu", lambda: x86(*FEATURES, "amx_bf16"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert usable_cpu().name == name
    assert ("amx_bf16" in usable_cpu().features) == keeps


def test_float16_is_computed_in_where_there_are_products_for_it(onednn):
    onednn(True, fp16=True)
    assert cpu_precision(x86(*FEATURES), "float16").label == "float16"


@pytest.mark.parametrize(
    ("capability", "dtype", "expected", "cost"),
    [
        ((9, 0), "auto", "bfloat16", ""),
        ((8, 0), "auto", "bfloat16", ""),
        ((7, 5), "auto", "float16", ""),
        ((7, 5), "bfloat16", "bfloat16", "emulates"),
        ((9, 0), "float32", "float32", "twice the bytes"),
    ],
)
def test_a_gpu_computes_in_what_it_stores(capability, dtype: str, expected: str, cost: str):
    precision = cuda_precision(capability, dtype)
    assert precision.label == expected
    assert cost in precision.reason


@pytest.mark.parametrize("ops", ["native", "plain"])
@pytest.mark.parametrize("dtype", ["auto", *DTYPES])
@pytest.mark.parametrize("shape", ["llama", "opt", "qwen3"])
def test_every_dtype_says_what_float32_says_of_the_same_numbers(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, dtype: str, ops: str
):
    precision = precision_of("cpu", dtype)
    folder = rounded(tiny_model(shape), tmp_path / "rounded", precision.storage)
    reference = make_runner(folder, dtype="float32")
    if ops == "plain":
        monkeypatch.setattr("shard.ops.choose.build", lambda *_: None)
    runner = make_runner(folder, dtype=dtype)
    ready = runner.ready()
    assert (ready.dtype, ready.compute_dtype) == (precision.dtype, precision.compute_dtype)
    assert ready.dtype_reason.endswith(".")
    prompts = [prompt[:1] + prompt for prompt in prompts_of(ready.vocab_size, [30, 5, 17])]
    said, expected = (generate(each, prompts, 1) for each in (runner, reference))
    close = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
    tolerance = max(close[precision.storage], close[precision.compute])
    for generation, other in zip(said, expected, strict=True):
        assert generation.tokens[0].logprob == pytest.approx(other.tokens[0].logprob, abs=tolerance)


def rounded(model: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The same model with numbers that a type can hold."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {
        name: tensor.to(dtype).float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("ops", ["native", "plain"])
@pytest.mark.parametrize("shape", ["llama", "opt", "qwen3"])
def test_a_kv_cache_of_8_bits_says_nearly_what_float32_says(
    tiny_model, monkeypatch: pytest.MonkeyPatch, shape: str, ops: str
):
    if ops == "plain":
        monkeypatch.setattr("shard.ops.choose.build", lambda *_: None)
    exact, rounded = (make_runner(tiny_model(shape), dtype="float32", kv_cache_dtype=kv) for kv in KV_TYPES)
    assert (exact.ready().kv_dtype, rounded.ready().kv_dtype) == KV_TYPES
    assert exact.ready().version != rounded.ready().version
    prompts = [prompt[:1] + prompt for prompt in prompts_of(exact.ready().vocab_size, [30, 5, 17])]
    for one, other in zip(*(generate(each, prompts, 4) for each in (rounded, exact)), strict=True):
        assert one.tokens[0].logprob == pytest.approx(other.tokens[0].logprob, abs=6e-2)
        assert one.tokens[0].logprob != other.tokens[0].logprob


def test_8_bits_take_a_quarter_of_float32_and_a_scale_for_each_token(tiny_model):
    runner = make_runner(tiny_model("llama"), dtype="float32", kv_cache_dtype="int8", kv_cache_bytes=1 << 20)
    heads, kv = runner.decoder.shape.heads, runner.kv_cache.layers[0]
    padded = -(-heads.dim // 32) * 32
    of_all = 2 * 16 * heads.kv * (padded + 4) * len(runner.kv_cache.layers)
    assert runner.block_bytes == of_all
    assert kv.keys[0].nbytes + kv.values[0].nbytes == of_all // len(runner.kv_cache.layers)


@pytest.mark.parametrize(("kv", "works"), [("auto", True), ("bfloat16", True), ("int8", False)])
def test_a_gpu_keeps_kv_in_the_type_of_weights(monkeypatch: pytest.MonkeyPatch, kv: str, works: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    if works:
        assert precision_of("cuda", "bfloat16", kv_cache_dtype=kv).kv is torch.bfloat16
        return
    with pytest.raises(ValueError, match=r"kv_cache_dtype must be auto or bfloat16 on this GPU, not int8"):
        precision_of("cuda", "bfloat16", kv_cache_dtype=kv)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_bytes_are_those_held(tiny_model, dtype: str):
    runner = make_runner(tiny_model("llama"), dtype=dtype)
    heads, kv = runner.decoder.shape.heads, runner.kv_cache.layers[0]
    size = DTYPES[dtype].itemsize
    assert kv.keys.dtype == kv.values.dtype == DTYPES[dtype]
    padded = -(-heads.dim // 32) * 32
    assert runner.block_bytes == 2 * 16 * heads.kv * padded * size * len(runner.kv_cache.layers)
    linears = [tensor for linear in runner.decoder.linears for tensor in linear.tensors]
    held = {id(tensor): tensor for tensor in (runner.decoder.embedding, *linears)}  # a tied head is one
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    norms = 9 * runner.decoder.shape.hidden_size * runner.model.precision.compute.itemsize
    assert runner.ready().weight_bytes == num_bytes + norms
    assert sum(runner.weights.values()) == num_bytes + norms
