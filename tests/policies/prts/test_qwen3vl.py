from __future__ import annotations

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLModel

from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from policies.prts.layout import Role
from policies.prts.qwen3vl import PRTSQwen3VL, Qwen3VLSettings, make_backbone
from policies.prts.role_mask import role_mask

ARCHITECTURE = {
    "text_config": {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    },
    "vision_config": {
        "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
    "image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293,
}  # fmt: skip
BACKBONE = {"weights": None, "architecture": ARCHITECTURE, "tuning": "full", "image_size": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def model(nano) -> PRTSQwen3VL:
    torch.manual_seed(0)
    model = PRTSQwen3VL(BACKBONE, nano.method).eval()
    model.fit_tokenizer(nano.chunks(64).numpy())
    return model


def batch_for(nano, texts, seed: int = 0, size: int = 16) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(texts), size, size, 3)
    batch = {key: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for key in IMAGE_KEYS}
    batch[STATE] = torch.rand(len(texts), 8, generator=generator) * 2 - 1
    batch[ACTION] = nano.chunks(len(texts), seed)
    batch[f"{ACTION}_is_pad"] = torch.zeros(len(texts), 4, dtype=torch.bool)
    return batch | {TASK: list(texts), "steps_to_go": torch.arange(len(texts))}


@torch.no_grad()
def test_patches_are_those_of_the_processor(nano, model):
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    processor = processing.Qwen2VLImageProcessor(
        patch_size=4, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 64, "longest_edge": 1 << 20},
    )  # fmt: skip
    images = batch_for(nano, nano.texts)[IMAGE_KEYS[0]]
    expected = processor(images=[image.permute(2, 0, 1) for image in images], return_tensors="pt")
    patches, grid = model.backbone._pixels(images)
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(grid, expected["image_grid_thw"])


@torch.no_grad()
def test_main_block_equals_the_stock_model(nano, model):
    """Vision, state and instruction through our blocks against Qwen3VLModel called the usual way."""
    backbone, batch = model.backbone, batch_for(nano, nano.five)
    encoded = model.encode(backbone.observe(batch), backbone.words(batch[TASK]))
    stock = Qwen3VLModel(Qwen3VLConfig(**ARCHITECTURE)).eval()
    stock.load_state_dict(backbone.model.state_dict())
    stock.set_attn_implementation("sdpa")
    prompt, prompt_count = backbone._prompt(batch[STATE], 2)
    for i, text in enumerate(nano.five):
        words = backbone._encode(text) + backbone._encode("<|im_end|>\n<|im_start|>assistant\n")
        ids = torch.cat([prompt[i, : prompt_count[i]], torch.tensor(words)])[None]
        pixels, grid = backbone._pixels(torch.stack([batch[key][i] for key in IMAGE_KEYS]))
        kinds = (ids == 290).int()
        out = stock(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds, use_cache=False)
        ours = encoded.hidden_BTD[i, : ids.shape[1]]
        torch.testing.assert_close(ours, out.last_hidden_state[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_roles_through_the_interface_equal_the_dense_mask(nano, model):
    backbone, batch = model.backbone, batch_for(nano, nano.five)
    observed, words = backbone.observe(batch), backbone.words(batch[TASK])
    kept = {}

    def dense(rows, layout, observed, cache=None):
        text = backbone.model.language_model
        call = text.forward

        def forward(**inputs):
            inputs.pop("role_plan")
            return call(**inputs, attention_mask=role_mask(layout)[:, None])

        text.forward, text.config._attn_implementation = forward, "sdpa"
        try:
            return type(backbone).run(backbone, rows, layout, observed, cache)
        finally:
            del text.forward
            text.config._attn_implementation = "prts_roles"

    arguments = (observed, words, model.tokens(batch[ACTION]), True, True)
    kept["fast"] = model.encode(*arguments)
    backbone.run = dense
    try:
        kept["dense"] = model.encode(*arguments)
    finally:
        del backbone.run
    real = kept["fast"].layout.role_BT >= 0
    torch.testing.assert_close(kept["fast"].hidden_BTD[real], kept["dense"].hidden_BTD[real], atol=1e-5, rtol=0)
    assert backbone.model.visual.config._attn_implementation == "sdpa"
    assert backbone.model.language_model.config._attn_implementation == "prts_roles"


@torch.no_grad()
def test_leaks_by_value(nano, model):
    backbone, batch = model.backbone, batch_for(nano, nano.five)
    actions = model.tokens(batch[ACTION])

    def features(batch):
        encoded = model.encode(backbone.observe(batch), backbone.words(batch[TASK]), actions, phi=True, psi=True)
        return model.phi(encoded), model.psi(encoded)

    phi, psi = features(batch)
    torch.testing.assert_close(features({**batch, TASK: ["open it"] * 5})[0], phi, atol=1e-5, rtol=0)
    other = batch_for(nano, nano.five, seed=1)
    torch.testing.assert_close(features(other)[1], psi, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.goals(backbone.words(batch[TASK])), psi, atol=1e-5, rtol=0)
    assert (features(other)[0] - phi).abs().max() > 1e-3


def test_trains_and_samples(nano):
    torch.manual_seed(0)
    model = PRTSQwen3VL(BACKBONE, nano.method)
    model.fit_tokenizer(nano.chunks(64).numpy())
    batch = batch_for(nano, nano.five, size=24)  # resized to 16
    for stage in model.stages:
        model.set_stage(stage)
        loss, _ = model.training_step(batch)
        loss.backward()
        wrong = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert [name for name in wrong if "embed_tokens" not in name] == []
        model.zero_grad()
    assert model.eval().predict(batch).shape == (5, 4, 7)
    model.head = "fast"
    assert model.predict(batch).shape == (5, 4, 7)


@torch.no_grad()
def test_cached_prefix_equals_one_pass(nano, model):
    """Two action tokens decoded from the cache against the same tokens in one pass."""
    from transformers import DynamicCache

    from policies.prts.attention import prefix_mask, real_tokens

    backbone, batch = model.backbone, batch_for(nano, nano.five)
    observed, words, actions = backbone.observe(batch), backbone.words(batch[TASK]), model.tokens(batch[ACTION])
    whole = model.encode(observed, words, actions)
    expected, _ = whole.layout.pick(whole.hidden_BTD, Role.ACTION)
    cache = DynamicCache()
    prefix = model.encode(observed, words, cache=cache)
    real, position = real_tokens(prefix.layout), prefix.layout.span_S + prefix.layout.counts_SR[:, Role.INSTRUCTION]
    for i in range(2):
        real = torch.cat([real, torch.ones(5, 1, dtype=torch.bool)], dim=1)
        token = model.embed_action(actions.ids_BN[:, i])[:, None]
        got = backbone.step(token, (position + i)[:, None], prefix_mask(real, 1), cache)
        torch.testing.assert_close(got[:, 0], expected[:, i], atol=1e-5, rtol=0)


@pytest.fixture
def lora(tmp_path) -> dict:
    """Settings of adapters on a folder as the hub's are."""
    torch.manual_seed(0)
    pytest.importorskip("peft")
    Qwen3VLModel(Qwen3VLConfig(**ARCHITECTURE)).save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    return {"weights": str(tmp_path), "tuning": "lora", "lora_rank": 2, "image_size": 16, "dtype": "float32"}


def test_lora_trains_and_stores_adapters_only(nano, lora):
    model = PRTSQwen3VL(lora, nano.method)
    model.set_stage("pretrain")
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    stored = model.state_dict()
    assert {name for name in stored if name.startswith("backbone.")} == {f"backbone.{name}" for name in trained}
    other = PRTSQwen3VL(lora, nano.method)
    with torch.no_grad():
        for value in stored.values():
            value.add_(0.01)
    other.load_state_dict(stored)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in stored.items())
    with pytest.raises(ValueError, match="check `tuning`"):
        other.load_state_dict({key: value for key, value in stored.items() if "phi_token" not in key})


def test_hub_weights_in_bfloat16_train_act_and_value_without_autocast(nano, lora):
    model = PRTSQwen3VL({**lora, "dtype": "bfloat16"}, nano.method)
    model.fit_tokenizer(nano.chunks(64).numpy())
    kinds = {name.rpartition("lora_")[1]: p.dtype for name, p in model.backbone.named_parameters()}
    assert kinds == {"": torch.bfloat16, "lora_": torch.float32}
    batch = batch_for(nano, ("", *nano.five[1:]))  # an empty instruction first, as DROID has them
    for stage in model.stages:
        model.set_stage(stage)
        model.training_step(batch)[0].backward()
    assert model.value(batch).shape == (5,)
    for head in ("flow", "fast"):
        model.head = head
        assert model.eval().predict(batch).shape == (5, 4, 7)


def save_byte_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="tuning=full"):
        make_backbone(Qwen3VLSettings(weights=None, architecture=ARCHITECTURE))
    with pytest.raises(ValueError, match="dtype=float32"):
        make_backbone(Qwen3VLSettings(weights="somewhere", tuning="full"))
    with pytest.raises(ValueError, match="multiple of 8"):
        make_backbone(Qwen3VLSettings(**{**BACKBONE, "image_size": 12}))
