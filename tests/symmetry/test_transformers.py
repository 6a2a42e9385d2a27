"""Discovery on models of the transformers library: the groups of Llama and GPT-2, tied and not."""

from collections import Counter

import pytest
import torch

import eqtoolbox as eq
from tests.symmetry.expected import counts, equivariances

transformers = pytest.importorskip("transformers")
WIDTH, VOCABULARY, LAYERS = 16, 20, 2


def llama(tied: bool) -> torch.nn.Module:
    """4 query heads of size 4 on 2 keys, 12 gated units."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=12, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(tied: bool) -> torch.nn.Module:
    """2 heads of size 4, width 8, 32 hidden units, 16 positions."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=LAYERS, n_head=2,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, loss_type="ForCausalLM",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def found_in(model: torch.nn.Module) -> list:
    tokens = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    return eq.weights.discover(model.eval(), {"input_ids": tokens, "labels": tokens})


@pytest.mark.parametrize("tied", [False, True])
def test_the_group_of_llama(tied: bool) -> None:
    torch.manual_seed(0)
    found = found_in(llama(tied))
    # a layer: 2 keys x 2 frequencies x C; 2 values x GL(4); 12 units; two gains of 16 channels;
    # heads: 1 exchange of keys, 1 of queries a key; the stream: 15 exchanges, 16 signs
    expected = {
        "rope": 8 * LAYERS,
        "general_linear": 32 * LAYERS,
        "gated_rescale": 12 * LAYERS,
        "gain_rescale": 32 * LAYERS,
        "permutation": (11 + 1 + 2) * LAYERS + 15,
        "sign_flip": (12 + 32) * LAYERS + 16,
    }
    if tied:  # the last gain cannot be moved into the embedding, only the whole stream against it
        expected["gain_rescale"] += 1
    else:
        expected["gain_rescale"] += 16
        expected["sign_flip"] += 16
        expected |= {"scale": 1, "translation": WIDTH}
    assert counts(found) == expected
    verified = [s for s in found if s.status == "verified"]
    assert max(s.residual for s in verified) <= 1e-10
    assert Counter(s.status for s in found) == {"verified": len(verified), "approximate": 1}
    assert ("head_scale" in equivariances(found)) == (not tied)


@pytest.mark.parametrize("tied", [False, True])
def test_the_group_of_gpt2(tied: bool) -> None:
    torch.manual_seed(0)
    found = found_in(gpt2(tied))
    expected = {
        "general_linear": (32 + 32) * LAYERS,  # query-key and value-output of 2 heads
        "gain_rescale": 16 * LAYERS,
        # shifts of the mean: rows that write to the stream, its biases; key bias
        "translation": (8 + 1 + 32 + 1 + 8) * LAYERS + 16,
        "bias_shift": (8 + 8 + 8) * LAYERS,  # two normalisations' biases, value bias
        "permutation": (31 + 1) * LAYERS + 7,
        "sign_flip": 16 * LAYERS,
    }
    if tied:
        expected["gain_rescale"] += 1  # whole stream against the last gain
        expected["sign_flip"] += 1  # whole stream and the last normalisation's bias
        # tables against each other: the head sees the shift of the tokens in all classes
        expected["translation"] += 8
    else:
        expected["gain_rescale"] += 8
        expected["sign_flip"] += 8 + 1  # last gain; the whole stream
        # token table: mean; head: softmax, last normalisation's bias; tables against each other
        expected["translation"] += VOCABULARY + 8 + 7
        expected["scale"] = 1
    assert counts(found) == expected
    assert max(s.residual for s in found if s.status == "verified") <= 1e-10


def test_half_precision_of_the_model_does_not_blunt_the_check() -> None:
    """Llama's norms, rotary angles and loss are cast to float32 by the model itself."""
    torch.manual_seed(0)
    found = found_in(llama(False).to(torch.bfloat16))
    assert max(s.residual for s in found if s.status == "verified") <= 1e-10
    assert counts(found)["rope"] == 8 * LAYERS


def changed(model: torch.nn.Module, twin: torch.nn.Module) -> dict[str, int]:
    """Dimensions of each family that the twin has less."""
    whole, left = Counter(counts(found_in(model))), Counter(counts(found_in(twin)))
    return dict(whole - left)


def limited(layer: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(layer, torch.nn.Hardtanh(-0.03, 0.05))


def test_gpt2_with_clamped_heads_loses_what_moves_them() -> None:
    torch.manual_seed(0)
    twin, whole = gpt2(tied=False), gpt2(tied=False)
    twin.transformer.h[0].attn.c_attn = limited(twin.transformer.h[0].attn.c_attn)
    # query-key and value-output of one layer, its key bias, its value bias; its heads, and the
    # features of each, still change places
    lost = {"general_linear": 64, "translation": 8, "bias_shift": 8}
    assert changed(whole, twin) == lost


def test_llama_with_a_clamped_gate_loses_its_units() -> None:
    torch.manual_seed(0)
    twin, whole = llama(tied=False), llama(tied=False)
    mlp = twin.model.layers[0].mlp
    mlp.up_proj = limited(mlp.up_proj)
    assert changed(whole, twin) == {"gated_rescale": 12, "sign_flip": 12}
