"""The KV cache by layer: bytes and back, taken over, cut back, refused when damaged."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

from cosched.runtime.errors import BadFrame
from cosched.runtime.kv import KvCache, KvLayout

HEADS, WIDTH = 2, 8


def filled(layers: range, tokens: int, dtype: torch.dtype = torch.float32) -> KvCache:
    cache, generator = KvCache(), torch.Generator().manual_seed(tokens)
    for layer in layers:
        pair = torch.randn(2, 1, HEADS, tokens, WIDTH, generator=generator).to(dtype)
        cache.update(pair[0], pair[1], layer)
    return cache


def layout(dtype: torch.dtype = torch.float32) -> KvLayout:
    return KvLayout(HEADS, WIDTH, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_export_and_import_give_every_bit_back(dtype: torch.dtype) -> None:
    cache, other = filled(range(2, 5), 7, dtype), KvCache()
    for layer in (2, 3, 4):
        other.take(cache.export(layer), layer, layout(dtype))
    assert other.layers == [2, 3, 4]
    assert other.length == 7
    assert other.n_bytes == cache.n_bytes == 3 * 7 * layout(dtype).bytes_per_token
    for layer in (2, 3, 4):
        assert cache.export(layer) == other.export(layer)


def test_every_damaged_byte_is_noticed() -> None:
    frame = filled(range(1), 3).export(0)
    padding = 5
    for i in (i for i in range(len(frame)) if i != padding):
        damaged = bytearray(frame)
        damaged[i] ^= 0x01
        with pytest.raises(BadFrame):
            KvCache().take(bytes(damaged), 0, layout())
    for wrong in (b"", frame[:10], frame[:-1], frame + b"x"):
        with pytest.raises(BadFrame):
            KvCache().take(wrong, 0, layout())


def test_another_layer_model_or_dtype_is_refused() -> None:
    frame = filled(range(1), 3).export(0)
    for like in (layout(torch.bfloat16), KvLayout(HEADS + 1, WIDTH, torch.float32, torch.device("cpu"))):
        with pytest.raises(BadFrame, match="another layer, model or dtype"):
            KvCache().take(frame, 0, like)
    with pytest.raises(BadFrame, match="another layer"):
        KvCache().take(frame, 1, layout())


def test_truncation_mends_a_step_that_broke_half_way() -> None:
    cache = filled(range(3), 5)
    whole = [cache.export(layer) for layer in range(3)]
    new = torch.ones(1, HEADS, 1, WIDTH)
    cache.update(new, new, 0)  # layers 1 and 2 never came
    cache.truncate(5)
    assert [cache.export(layer) for layer in range(3)] == whole
    cache.truncate(0)
    assert (cache.length, cache.layers, cache.n_bytes) == (0, [], 0)


def test_what_is_shared_is_not_changed_by_the_other() -> None:
    cache, other = filled(range(3), 5), KvCache()
    other.adopt(cache, range(1, 3))
    before = cache.export(1)
    new = torch.ones(1, HEADS, 1, WIDTH)
    other.update(new, new, 1)
    assert cache.export(1) == before
    assert other.layers == [1, 2]
    with pytest.raises(BadFrame, match="layer 0"):
        other.export(0)
    with pytest.raises(BadFrame, match="layer 0"):
        KvCache().adopt(other, [0])


def test_two_caches_that_share_a_layer_write_into_neithers_tokens() -> None:
    """Whoever appends first has the copy, even behind a cut; pages that nothing is left in are given back."""
    one, other = KvCache(), KvCache()
    for n in range(20):
        one.append(torch.full((1, 2, 1, 8), float(n)), torch.full((1, 2, 1, 8), float(n)), 3)
    assert one.n_bytes == 2 * 2 * 32 * 8 * 4
    other.adopt(one, [3], 18)
    frame = other.export(3)
    one.truncate(17)
    for _ in range(9):
        one.append(torch.full((1, 2, 1, 8), -1.0), torch.full((1, 2, 1, 8), -1.0), 3)
    assert other.export(3) == frame
    before = one.export(3)
    other.append(torch.full((1, 2, 1, 8), -2.0), torch.full((1, 2, 1, 8), -2.0), 3)
    assert (one.export(3), other.tokens(3)) == (before, 19)
    one.truncate(3)
    assert one.n_bytes <= 2 * 2 * 16 * 8 * 4
    assert one.tokens(3) == 3
