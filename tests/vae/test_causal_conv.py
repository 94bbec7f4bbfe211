from __future__ import annotations

import pytest
import torch
from cogvideox.vae import fewer_products, frame_runs
from cogvideox.vae.causal_conv import CausalConv3d, CausalState


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1), (3, 2), (1, 4), (2, 2, 1)])
def test_chunks_with_carried_state_equal_one_call(chunks: tuple[int, ...], grad: bool) -> None:
    conv = CausalConv3d(3, 4).double()
    x = torch.randn(2, 3, 5, 6, 7, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        whole = conv(x, CausalState())
        tails: dict[torch.nn.Module, torch.Tensor] = {}
        parts = [
            conv(part, CausalState(index == 0, index == len(chunks) - 1, tails))
            for index, part in enumerate(x.split(chunks, dim=2))
        ]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=0, atol=1e-13)
    assert not tails  # the last chunk leaves nothing behind


def test_no_frame_sees_a_later_one() -> None:
    conv = CausalConv3d(3, 4)
    x = torch.randn(1, 3, 5, 6, 6)
    changed = x.clone()
    changed[:, :, 3:] += 1
    before, after = conv(x, CausalState()), conv(changed, CausalState())
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


@torch.no_grad()
def test_tail_does_not_hold_the_whole_buffer() -> None:
    conv = CausalConv3d(3, 4)
    state = CausalState(last_chunk=False)
    conv(torch.randn(1, 3, 9, 6, 6), state)
    tail = state.tails[conv]
    assert tail.shape == (1, 3, 2, 6, 6)
    assert tail.untyped_storage().nbytes() == tail.numel() * tail.element_size()


@torch.no_grad()
def test_large_convolutions_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CausalConv3d(3, 4).double()
    x = torch.randn(1, 3, 7, 6, 6, dtype=torch.float64)
    expected = conv(x, CausalState())
    monkeypatch.setattr(frame_runs, "MAX_ELEMENTS", 4 * x[:, :, 0].numel() + 1)
    sizes: list[int] = []
    conv.conv.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2]))
    torch.testing.assert_close(conv(x, CausalState()), expected, rtol=0, atol=1e-13)
    assert sizes == [4, 4, 4, 3]


@torch.no_grad()
def test_fast_path_is_taken_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CausalConv3d(3, 4).double()
    x = torch.randn(1, 3, 5, 20, 20, dtype=torch.float64)
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 10**9)
    expected = conv(x, CausalState())
    monkeypatch.setattr(fewer_products, "MIN_POSITIONS", 0)
    monkeypatch.setattr(conv.conv, "forward", None)  # the plain convolution is not called
    torch.testing.assert_close(conv(x, CausalState()), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_buffer_is_reused_and_holds_no_old_values() -> None:
    conv, state = CausalConv3d(3, 4), CausalState()
    large, small = torch.randn(1, 3, 5, 8, 8), torch.randn(1, 3, 2, 4, 4)
    conv(large, state)
    scratch = state.scratch
    assert scratch is not None
    torch.testing.assert_close(conv(small, state), conv(small, CausalState()))
    assert state.scratch is scratch
    assert state.buffer((1, 3, 4, 4, 4), small).is_contiguous(memory_format=torch.channels_last_3d)
