"""PRTS's large backbone: transformers' Qwen3-VL, unchanged, with hub weights (LoRA or full) or a small random one.

The text model runs under our role-aware attention, the vision tower under plain SDPA. The VISION_STATE block is the
prompt's head, each image between its marks, and the state as text; the INSTRUCTION block is the words and the marks
that hand over to the assistant. Action tokens have their own embedding and output layer (`model.py`), so that none
of the language model's tokens is overwritten.

Shapes: B samples, N tokens of the VISION_STATE block, T tokens of a row, D width, X image tokens, L DeepStack layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLConfig, Qwen3VLModel

from embodied.data.windows import WindowConfig
from embodied.schema import ACTION, IMAGE_KEYS, STATE
from embodied.transforms import Normalize, Transform
from policies.layers import distinct
from policies.prts.attention import ATTENTION, make_plan
from policies.prts.backbone import Batch, Observed, Words
from policies.prts.layout import Layout, Role
from policies.prts.model import PRTS, PRTSConfig, check_stage

HEAD, AFTER_STATE, AFTER_WORDS = "<|im_start|>user\n", "\nTask: ", "<|im_end|>\n<|im_start|>assistant\n"
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Tuning(Enum):
    """What of the language model is trained; the vision tower stays as it is unless `full`."""

    lora = "lora"
    full = "full"


@dataclass
class Qwen3VLSettings:
    """weights: a hub name or folder with safetensors; None: random, of the sizes in `architecture` (for tests).

    image_size: images are resized to this side, a multiple of 32. bins: a state number becomes one of so many integers.
    dtype: of the hub's weights. What is trained is float32: adapters always, so tuning=full needs float32.
    """

    weights: str | None = "Qwen/Qwen3-VL-4B-Instruct"
    revision: str = "main"
    architecture: dict[str, Any] | None = None
    tuning: str = Tuning.lora.value
    lora_rank: int = 32
    image_size: int = 224
    bins: int = 256
    dtype: str = "bfloat16"


class Bytes:
    """The tokenizer of a random Qwen3-VL: UTF-8 bytes."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:  # noqa: ARG002
        return list(text.encode())


class Qwen3VLBackbone(nn.Module):
    """See the module; a Backbone. `tokenizer` has `encode(text, add_special_tokens=False)`."""

    packs = False  # positions and DeepStack features are those of one sample a row

    def __init__(self, model: Qwen3VLModel, tokenizer: Any, settings: Qwen3VLSettings) -> None:
        super().__init__()
        config: Any = model.config
        self.vision, self.text = config.vision_config, config.text_config
        self.unit = self.vision.patch_size * self.vision.spatial_merge_size
        if settings.image_size % self.unit:
            raise ValueError(f"image_size should be a multiple of {self.unit}, got {settings.image_size}")
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.width = self.text.hidden_size
        self.model.language_model.set_attn_implementation(ATTENTION)
        self.model.visual.set_attn_implementation("sdpa")

    def set_trainable(self, trainable: bool) -> None:
        lora = self.settings.tuning == Tuning.lora.value
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(trainable and is_trained(name, lora))

    def observe(self, batch: Batch) -> Observed:
        images_BKHWC = torch.stack([batch[key] for key in IMAGE_KEYS], dim=1)
        pixels, grid = self._pixels(images_BKHWC.flatten(0, 1))
        seen = self.model.get_image_features(pixels, grid, return_dict=True)
        ids_BN, count_B = self._prompt(batch[STATE], images_BKHWC.shape[1])
        image_BN = ids_BN == self.model.config.image_token_id
        rope_index: Any = self.model.get_rope_index
        real_BN = torch.arange(ids_BN.shape[1], device=ids_BN.device) < count_B[:, None]
        position_3BN, _ = rope_index(
            ids_BN, mm_token_type_ids=image_BN.int(), image_grid_thw=grid, attention_mask=real_BN.int()
        )
        tokens_BND = self.model.get_input_embeddings()(ids_BN)
        features_XD = torch.cat(list(seen.pooler_output)).to(tokens_BND.dtype)
        tokens_BND = tokens_BND.masked_scatter(image_BN[..., None], features_XD)
        deep_BNLD = tokens_BND.new_zeros(*ids_BN.shape, len(seen.deepstack_features), self.width)
        deep_BNLD[image_BN] = torch.stack(list(seen.deepstack_features), dim=1).to(tokens_BND.dtype)
        span_B = position_3BN.amax(dim=(0, 2)) + 1
        extras = {"position": position_3BN.permute(1, 2, 0), "image": image_BN, "deep": deep_BNLD}
        return Observed(tokens_BND, count_B, span_B, extras)

    def words(self, texts: Sequence[str]) -> Words:
        unique, index_B = distinct(texts)
        goal_UN, goal_count_U = self._ids([self._encode(text) for text in unique])
        ids_UN, count_U = self._ids([self._encode(text) + self._encode(AFTER_WORDS) for text in unique])
        embed = self.model.get_input_embeddings()
        return Words(embed(ids_UN), count_U, embed(goal_UN), goal_count_U, index_B.to(ids_UN.device))

    def run(self, rows_BTD: Tensor, layout: Layout, observed: Observed | None, cache: Any = None) -> Tensor:
        position_3BT = layout.position_BT.expand(3, -1, -1).clone()
        visual: dict[str, Any] = {}
        if observed is not None:
            index_SN, real_SN = layout.block(Role.VISION_STATE)
            where_X, extras = index_SN[real_SN], observed.extras
            position_3BT.flatten(1)[:, where_X] = extras["position"][real_SN].T
            image_SN = extras["image"] & real_SN
            mask_BT = torch.zeros_like(layout.role_BT, dtype=torch.bool)
            mask_BT.flatten()[index_SN[image_SN]] = True
            deep_XLD = extras["deep"][image_SN][index_SN[image_SN].argsort()]
            visual = {"visual_pos_masks": mask_BT, "deepstack_visual_embeds": list(deep_XLD.unbind(1))}
        return self.model.language_model(
            inputs_embeds=rows_BTD.to(self._dtype), position_ids=position_3BT, past_key_values=cache,
            use_cache=cache is not None, role_plan=make_plan(layout), **visual,
        ).last_hidden_state.float()  # fmt: skip

    def step(self, x_BND: Tensor, position_BN: Tensor, mask_B1NK: Tensor, cache: Any) -> Tensor:
        return self.model.language_model(
            inputs_embeds=x_BND.to(self._dtype), position_ids=position_BN.expand(3, -1, -1), attention_mask=mask_B1NK,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state.float()  # fmt: skip

    @property
    def _dtype(self) -> torch.dtype:
        """Of the hub's weights; action tokens, heads and expert are float32 whatever it is."""
        return self.model.get_input_embeddings().weight.dtype

    def _prompt(self, state_BS: Tensor, cameras: int) -> tuple[Tensor, Tensor]:
        """Ids of the VISION_STATE block (B, N), image tokens as placeholders, and their numbers."""
        config = self.model.config
        tokens = (self.settings.image_size // self.unit) ** 2
        image = [config.vision_start_token_id, *[config.image_token_id] * tokens, config.vision_end_token_id]
        bins = self.settings.bins
        level_BS = ((state_BS.clamp(-1, 1) + 1) / 2 * (bins - 1)).round().long().tolist()
        texts = [self._encode("State: " + " ".join(f"{n:03d}" for n in row) + AFTER_STATE) for row in level_BS]
        return self._ids([self._encode(HEAD) + image * cameras + text for text in texts])

    def _pixels(self, images_XHWC: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> flattened patches as Qwen3-VL's processor orders them, and the grid (X, 3)."""
        vision, size = self.vision, self.settings.image_size
        x = images_XHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        if x.shape[-2:] != (size, size):
            x = interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1.0, 1.0)
        patch, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        side = size // patch
        x = x[:, None].expand(-1, frames, -1, -1, -1)
        x = x.reshape(len(x), frames, 3, side // merge, merge, patch, side // merge, merge, patch)
        patches = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(x) * side * side, -1)
        return patches, torch.tensor([[1, side, side]], device=x.device).expand(len(x), 3)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _ids(self, lists: list[list[int]]) -> tuple[Tensor, Tensor]:
        device = self.model.get_input_embeddings().weight.device
        count = torch.tensor([len(ids) for ids in lists], device=device)
        return pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in lists], batch_first=True).to(device), count


class PRTSQwen3VL(PRTS):
    """`policy=prts_qwen3vl_4b`: a TrainableModel and a ChunkModel. With LoRA only what is trained is in its state."""

    features, language = None, None

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        method: dict[str, Any] | None = None,
        fast: dict[str, Any] | None = None,
    ) -> None:
        qwen, settings = Qwen3VLSettings(**(backbone or {})), PRTSConfig(**(method or {}))
        super().__init__(make_backbone(qwen), settings, fast)
        self.qwen, self.image_keys, self.frozen = qwen, IMAGE_KEYS, ()
        self.image_size = qwen.image_size

    def config(self) -> dict[str, Any]:
        return {"backbone": asdict(self.qwen), **self.method_config()}

    def transforms(self) -> list[Transform]:
        return [Normalize(STATE, mode="quantile"), Normalize(ACTION, mode="min_max")]

    def windows(self, stage: str) -> WindowConfig:
        check_stage(stage)
        return WindowConfig(observations=[*IMAGE_KEYS, STATE], actions=[ACTION], chunk=self.chunk)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        lora = self.qwen.tuning == Tuning.lora.value
        return {
            key: value
            for key, value in super().state_dict(*args, **kwargs).items()
            if not key.startswith("backbone.") or is_trained(key, lora)
        }

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        differing = sorted(set(state_dict) ^ set(self.state_dict()))
        if strict and differing:
            raise ValueError(f"weights should be those of this model's state, {differing[0]} differs: check `tuning`")
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def is_trained(name: str, lora: bool) -> bool:
    return "lora_" in name if lora else True


def make_backbone(settings: Qwen3VLSettings) -> Qwen3VLBackbone:
    """Hub weights, or a random model of the given architecture. ValueError for settings that contradict each other."""
    lora = Tuning(settings.tuning) is Tuning.lora
    if settings.weights is None:
        if settings.architecture is None or lora:
            raise ValueError("a random Qwen3-VL needs `architecture` and tuning=full: LoRA would lose its base weights")
        model = Qwen3VLModel(Qwen3VLConfig(**settings.architecture))
        return Qwen3VLBackbone(model, Bytes(), settings)
    if not lora and settings.dtype != "float32":
        raise ValueError(
            f"tuning=full trains the hub's weights and needs dtype=float32, got {settings.dtype}: set "
            "policy.backbone.dtype=float32 (precision=bf16 still computes in bfloat16)"
        )
    from transformers import AutoTokenizer

    named: dict[str, Any] = {"revision": settings.revision}
    tokenizer = AutoTokenizer.from_pretrained(settings.weights, **named)
    if torch.get_default_device().type == "meta":  # a checkpoint's header is compared with the model before it is read
        model = Qwen3VLModel(Qwen3VLConfig.from_pretrained(settings.weights, **named))
    else:
        dtype = getattr(torch, settings.dtype)
        model = Qwen3VLModel.from_pretrained(settings.weights, dtype=dtype, use_safetensors=True, **named)
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        adapter = LoraConfig(r=settings.lora_rank, lora_alpha=2 * settings.lora_rank, target_modules=LORA_TARGETS)
        inject_adapter_in_model(adapter, model.language_model)
        for name, parameter in model.named_parameters():
            if is_trained(name, lora):
                parameter.data = parameter.data.float()  # small steps and averages are lost in bfloat16
    return Qwen3VLBackbone(model, tokenizer, settings)
