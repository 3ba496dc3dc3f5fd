"""The op attention: dropout, by documented words."""

import pytest
import torch
from attention_inputs import HERE, gradients, make

from fastgen import use_backend
from fastgen.ops import attention
from fastgen.random import Stream, bits

# Dropout.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("p", [0.0, 0.25, 0.9])
def test_dropout_takes_the_words_that_are_documented_forward_and_backward(backend, p):
    q, k, v = make((3, 4, 2, 9, 77, 8, 6), torch.float64)
    ids = torch.tensor([5, 0, 2**40 + 3])
    left = torch.empty(3, 4, 9, 77, dtype=torch.bool)
    for i in range(9):  # of the first head, whose elements are the keys
        left[:, :, i] = (bits(11, ids, step=i, n=77, stream=Stream.DROPOUT).double() >= p * 2.0**32)[:, None]

    def plain(q, k, v):
        weights = torch.softmax(q @ k.repeat_interleave(2, 1).mT * 8**-0.5, -1)
        return (weights * left / (1 - p))[:, :1] @ v[:, :1]

    def ours(q, k, v):
        return attention(q, k, v, dropout_p=p, seed=11, sample_ids=ids)[:, :1]

    with use_backend(backend):
        torch.testing.assert_close(gradients(ours, (q, k, v)), gradients(plain, (q, k, v)))


@pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")
def test_dropout_of_native_is_that_of_the_reference_for_every_head_and_leaves_its_share():
    q, k = torch.zeros(2, 300, 5, 4), torch.zeros(2, 1, 130, 4)
    v = torch.eye(130).expand(2, 1, 130, 130)
    left = []
    for backend in HERE:
        with use_backend(backend):
            left.append(attention(q.transpose(1, 2), k, v, dropout_p=0.3, seed=3) > 0)
    assert torch.equal(*left)
    share = left[0].double().mean()
    error = (0.3 * 0.7 / left[0].numel()) ** 0.5
    assert abs(share - 0.7) < 5 * error  # false alarm 6e-7
    assert not torch.equal(left[0][0], left[0][1]) and not torch.equal(left[0][:, 0], left[0][:, 1])


def test_dropout_follows_the_seed_of_torch_and_the_sample_ids():
    q, k, v = make((2, 2, 2, 9, 20, 8, 8))
    torch.manual_seed(1)
    first, second = attention(q, k, v, dropout_p=0.5), attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(attention(q, k, v, dropout_p=0.5), first) and not torch.equal(first, second)
    whole = attention(q, k, v, dropout_p=0.5, seed=7, sample_ids=torch.tensor([4, 9]))
    alone = attention(q[1:], k[1:], v[1:], dropout_p=0.5, seed=7, sample_ids=torch.tensor([9]))
    assert torch.equal(alone, whole[1:]) or "native" not in HERE
