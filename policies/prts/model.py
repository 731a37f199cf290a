"""PRTS: one backbone pass over the five blocks, and the losses of its four stages.

pretrain   cross-entropy of the action tokens + both contrastive losses (paper, Sec. 3)
posttrain  flow matching only; the contrastive heads are frozen
joint      all of them in one run; the flow loss sends no gradient into the backbone
value      both contrastive losses on the heads alone: the policy stays what it is, and a step costs a forward pass

Shapes: B samples, N tokens of a block, T tokens of a row, D width, H steps of a chunk, A action channels, U distinct
instructions, V action tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from embodied.data.windows import Relabel, Windows
from embodied.schema import ACTION, ACTION_DIM, TASK
from embodied.training.augment import StateNoise
from policies.prts.backbone import Backbone, Batch, Observed, Words, append
from policies.prts.contrastive import CRLConfig, CRLHeads, Pairs, contrastive_losses, discount_weights, goal_ids
from policies.prts.decoding import sample_tokens
from policies.prts.fast_tokenizer import FastTokenizer
from policies.prts.flow import FlowConfig, FlowExpert, Guide, Prefix
from policies.prts.layout import CRLPositions, Layout, Role, make_layout

STAGES = ("pretrain", "posttrain", "joint", "value")
HEADS = ("fast", "flow")
FIT_CHUNKS = 8192  # chunks that the tokenizer is fitted on


@dataclass
class PRTSConfig:
    """What all backbones share. contrastive: weight of both contrastive losses, 0 leaves their blocks out.

    head: which head acts, "fast" (autoregressive tokens) or "flow"; set by the stage. train_backbone: whether
    post-training moves the backbone.
    """

    chunk: int = 10
    fast_vocab: int = 1024
    fast_scale: float = 5.0
    contrastive: float = 1.0
    positions: str = CRLPositions.AFTER_STATE.value
    head: str = "fast"
    train_backbone: bool = True
    crl: CRLConfig = field(default_factory=CRLConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f"head should be one of {', '.join(HEADS)}, got {self.head!r}")
        self.crl = CRLConfig(**self.crl) if isinstance(self.crl, dict) else self.crl
        self.flow = FlowConfig(**self.flow) if isinstance(self.flow, dict) else self.flow


@dataclass(frozen=True)
class ActionTokens:
    """FAST ids of B chunks (B, N), padded with 0, and their numbers (B,)."""

    ids_BN: Tensor
    count_B: Tensor


@dataclass(frozen=True)
class Encoded:
    """One backbone pass: the layout, its last hidden states, and what went in."""

    layout: Layout
    hidden_BTD: Tensor
    words: Words | None
    actions: ActionTokens | None


class PRTS(nn.Module):
    """The method on any Backbone. `tokenizer` is fitted on the data before training and saved with the checkpoint."""

    stages = STAGES
    image_keys: tuple[str, ...]
    image_size: int

    def __init__(self, backbone: Backbone, config: PRTSConfig, fast: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, config
        self.chunk, self.stage, self.head = config.chunk, "pretrain", config.head
        self.tokenizer = None if fast is None else FastTokenizer.from_json(fast)
        width = backbone.width
        self.embed_action = nn.Embedding(config.fast_vocab, width)
        nn.init.normal_(self.embed_action.weight, std=0.5)
        self.action_head = nn.Linear(width, config.fast_vocab)
        self.phi_token = nn.Parameter(torch.randn(width) * 0.5)
        self.psi_token = nn.Parameter(torch.randn(width) * 0.5)
        self.crl = CRLHeads(width, config.crl)
        self.expert = FlowExpert(width, config.chunk, ACTION_DIM, config.flow)

    def set_stage(self, stage: str) -> None:
        """Chooses losses, what is trained, and the head that acts. ValueError for a stage it does not have."""
        check_stage(stage)
        contrastive, imitates = self.settings.contrastive > 0, stage in ("pretrain", "joint")
        if stage == "value" and not contrastive:
            raise ValueError("stage value trains the contrastive heads, but method.contrastive is 0: give it more")
        self.stage, self.head = stage, {"pretrain": "fast", "value": self.settings.head}.get(stage, "flow")
        self.requires_grad_(True)
        self.embed_action.requires_grad_(imitates)
        self.action_head.requires_grad_(imitates)
        for module in self.expert_modules():
            module.requires_grad_(stage in ("posttrain", "joint"))
        self.crl.requires_grad_(contrastive and stage != "posttrain")
        for token in (self.phi_token, self.psi_token):
            token.requires_grad_(contrastive and imitates)
        self.backbone.set_trainable(imitates or (stage == "posttrain" and self.settings.train_backbone))

    def expert_modules(self) -> list[nn.Module]:
        """What the flow loss trains besides the backbone."""
        return [self.expert]

    def look_again(self, batch: Batch, instruction_BD: Tensor) -> Tensor | None:  # noqa: ARG002
        """More context (B, N, D) for the expert, of the observation under the instruction's last hidden state."""
        return None

    def method_config(self) -> dict[str, Any]:
        """The constructor's arguments beside the backbone's, with the tokenizer and the head that acts."""
        fast = None if self.tokenizer is None else self.tokenizer.to_json()
        return {"method": {**asdict(self.settings), "head": self.head}, "fast": fast}

    def make_policy(self, *arguments: Any) -> Any:
        """The Policy of a loaded checkpoint (`embodied.checkpoint.load_policy` calls this)."""
        from policies.prts.policy import PRTSPolicy

        return PRTSPolicy(self, *arguments)

    def relabel(self, stage: str) -> list[Relabel]:
        """Noise on the state, as for behaviour cloning."""
        check_stage(stage)
        return [StateNoise()]

    def fit(self, windows: Any, earlier: Mapping[str, Any] | None) -> None:
        """The tokenizer of the checkpoint gone on from, or one fitted on chunks spread evenly over the data. Stage
        value also leaves the acting to that checkpoint's head. ValueError for settings that what stays contradicts."""
        if earlier is not None:
            self._check_goes_on(earlier["method"])
            if self.stage == "value":
                self.head = earlier["method"]["head"]
        if earlier is not None and earlier.get("fast") is not None:
            self.tokenizer = FastTokenizer.from_json(earlier["fast"])
            return
        parts = [Windows(m.cache, replace(m.config, observations=[]), m.episodes) for m in windows.members]
        share = max(1, FIT_CHUNKS // len(parts))
        chosen = [np.unique(np.linspace(0, len(part) - 1, share).astype(int)) for part in parts]
        batches = [part.get_batch(samples) for part, samples in zip(parts, chosen, strict=True)]
        self.fit_tokenizer(np.concatenate([windows.pipeline.forward(batch)[ACTION] for batch in batches]))

    def _check_goes_on(self, earlier: Mapping[str, Any]) -> None:
        """The tokenizer stays the checkpoint's, and in post-training the heads of the value do."""
        mine = asdict(self.settings)
        pairs = {key: (mine[key], earlier.get(key, mine[key])) for key in ("fast_scale", "fast_vocab")}
        if self.stage == "posttrain" and self.settings.contrastive > 0:
            pairs["positions"] = (mine["positions"], earlier.get("positions", mine["positions"]))
            pairs["crl.gamma"] = (mine["crl"]["gamma"], earlier.get("crl", {}).get("gamma", mine["crl"]["gamma"]))
        for key, (now, then) in pairs.items():
            if now != then:
                raise ValueError(
                    f"stage {self.stage} keeps what its checkpoint learnt under method.{key}={then}, got {now}: set "
                    f"policy.method.{key}={then}, or give policy=CHECKPOINT in place of a name and stage.init"
                )

    def fit_tokenizer(self, actions_NHA: np.ndarray) -> None:
        """Fits FAST on normalised chunks (N, H, A)."""
        self.tokenizer = FastTokenizer.fit(actions_NHA, self.settings.fast_vocab, self.settings.fast_scale)

    def training_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the stage, and its parts."""
        observed, words = self.backbone.observe(batch), self.backbone.words(batch[TASK])
        if self.stage == "posttrain":
            parts = {"flow": self._flow_loss(self.encode(observed, words), batch, stop=False)}
            return parts["flow"], parts
        contrastive, imitates = self.settings.contrastive > 0, self.stage != "value"
        encoded = self.encode(observed, words, self.tokens(batch[ACTION]), contrastive, contrastive, imitates)
        parts = self._imitation_loss(encoded) if imitates else {}
        loss = parts.get("bc", self.phi_token.new_zeros(()))
        if contrastive:
            losses = self._contrastive_loss(encoded, batch)
            loss = loss + self.settings.contrastive * (losses["action_to_goal"] + losses["goal_to_action"])
            parts |= losses | {"scale": self.crl.scale()}
        if self.stage == "joint":
            parts["flow"] = self._flow_loss(encoded, batch, stop=True)
            loss = loss + parts["flow"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def tokens(self, actions_BHA: Tensor) -> ActionTokens:
        """FAST ids of normalised chunks. ValueError before the tokenizer is fitted."""
        lists = self._fast().encode(actions_BHA.detach().float().cpu().numpy())
        device = self.phi_token.device
        count_B = torch.tensor([len(ids) for ids in lists], device=device)
        rows = [torch.tensor(ids, dtype=torch.long) for ids in lists]
        return ActionTokens(nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), count_B)

    def encode(
        self,
        observed: Observed | None,
        words: Words | None,
        actions: ActionTokens | None = None,
        phi: bool = False,
        psi: bool = False,
        imitate: bool = True,
        cache: Any = None,
    ) -> Encoded:
        """One backbone pass over the blocks that are given. `phi` adds CRL_ACTION, `psi` CRL_GOAL, once an instruction.

        imitate=False leaves INSTRUCTION and ACTION out: what phi needs is the observation and its own block, and with
        positions=paper the instruction's length.
        """
        counted = phi and CRLPositions(self.settings.positions) is CRLPositions.PAPER
        blocks: dict[Role, tuple[Tensor, Tensor]] = {}
        if observed is not None:
            blocks[Role.VISION_STATE] = (observed.tokens_BND, observed.count_B)
        if words is not None:
            if imitate or counted:
                picked_BND = words.tokens_UND.index_select(0, words.index_B)
                blocks[Role.INSTRUCTION] = (picked_BND, words.count_U.index_select(0, words.index_B))
            if psi:
                blocks[Role.CRL_GOAL] = self._goal_block(words)
        if actions is not None:
            embedded_BND = self.embed_action(actions.ids_BN)
            if imitate:
                blocks[Role.ACTION] = (embedded_BND, actions.count_B)
            if phi:
                blocks[Role.CRL_ACTION] = (append(embedded_BND, actions.count_B, self.phi_token), actions.count_B + 1)
        packed = cache is None and self.backbone.packs
        layout = self._layout({role: count for role, (_, count) in blocks.items()}, observed, packed)
        rows_BTD = layout.assemble({role: tokens for role, (tokens, _) in blocks.items()})
        return Encoded(layout, self.backbone.run(rows_BTD, layout, observed, cache), words, actions)

    def phi(self, encoded: Encoded) -> Tensor:
        """(B, features)."""
        return self.crl.phi(encoded.layout.last(encoded.hidden_BTD, Role.CRL_ACTION))

    def psi(self, encoded: Encoded) -> Tensor:
        """(U, features), one for each distinct instruction."""
        assert encoded.words is not None
        return self.crl.psi(encoded.layout.last(encoded.hidden_BTD, Role.CRL_GOAL, encoded.words.first()))

    @torch.no_grad()
    def value(self, batch: Batch) -> Tensor:
        """Observation, normalised actions and instructions -> (B,) log-reachability, up to a constant of the goal."""
        words = self.backbone.words(batch[TASK])
        encoded = self.encode(self.backbone.observe(batch), words, self.tokens(batch[ACTION]), phi=True, imitate=False)
        return self.crl.value(self.phi(encoded), self.goals(words).index_select(0, words.index_B))

    def goals(self, words: Words) -> Tensor:
        """psi (U, features) of instructions alone."""
        each = torch.arange(len(words.count_U), device=words.count_U.device)
        alone = Words(words.tokens_UND, words.count_U, words.goal_UND, words.goal_count_U, each)
        return self.psi(self.encode(None, alone, psi=True, imitate=False))

    def predict(self, batch: Batch, noise_BHA: Tensor | None = None, guide: Guide | None = None) -> Tensor:
        """Observation after the pipeline -> normalised actions (B, H, A), by the head that was trained last."""
        observed, words = self.backbone.observe(batch), self.backbone.words(batch[TASK])
        if self.head == "flow":
            return self.expert.sample(self.prefix(self.encode(observed, words), batch), noise_BHA, guide=guide)
        cache = DynamicCache()
        encoded = self.encode(observed, words, cache=cache)
        tokenizer = self._fast()
        lengths_V = torch.full((self.settings.fast_vocab,), tokenizer.coefficients + 1, device=self.phi_token.device)
        lengths_V[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.lengths).to(lengths_V.device)
        last_BD = encoded.layout.last(encoded.hidden_BTD, Role.INSTRUCTION)
        tokens = sample_tokens(
            last_BD, encoded.layout, cache, self.backbone.step, self.embed_action, self.action_head, lengths_V,
            tokenizer.coefficients,
        )  # fmt: skip
        return torch.from_numpy(tokenizer.decode(tokens)).to(last_BD.device)

    def _fast(self) -> FastTokenizer:
        if self.tokenizer is None:
            raise ValueError("the FAST tokenizer should be fitted on the data first: `embodied train` does it")
        return self.tokenizer

    def _goal_block(self, words: Words) -> tuple[Tensor, Tensor]:
        """CRL_GOAL at the first sample of each instruction; the others have none (psi sees nothing else anyway)."""
        tokens_UND = append(words.goal_UND, words.goal_count_U, self.psi_token)
        first_U, samples = words.first(), len(words.index_B)
        count_B = torch.zeros(samples, dtype=torch.long, device=first_U.device)
        count_B[first_U] = words.goal_count_U + 1
        return tokens_UND.index_select(0, words.index_B), count_B

    def _layout(self, counts: dict[Role, Tensor], observed: Observed | None, packed: bool) -> Layout:
        """One sample a row, or (packed) all in one row, without padding."""
        some = next(iter(counts.values()))
        counts_SR = torch.stack([counts.get(role, torch.zeros_like(some)) for role in Role], dim=1)
        span = None if observed is None else observed.span_B
        rows = torch.zeros(len(some), dtype=torch.long) if packed else None
        return make_layout(counts_SR, rows=rows, positions=CRLPositions(self.settings.positions), span=span)

    def _imitation_loss(self, encoded: Encoded) -> dict[str, Tensor]:
        """Cross-entropy of each action token, given the observation, the instruction and the tokens before it."""
        assert encoded.actions is not None
        index_SN, real_SN = encoded.layout.block(Role.ACTION)
        before_XD = encoded.hidden_BTD.flatten(0, 1).index_select(0, index_SN[real_SN] - 1)
        logits_XV, wanted_X = self.action_head(before_XD), encoded.actions.ids_BN[real_SN]
        accuracy = (logits_XV.argmax(-1) == wanted_X).float().mean()
        return {"bc": cross_entropy(logits_XV.float(), wanted_X), "token_accuracy": accuracy}

    def _contrastive_loss(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        assert encoded.words is not None
        device = self.phi_token.device
        goal_B = batch["task_id"].long() if "task_id" in batch else goal_ids(batch[TASK], device)
        steps_B = batch["steps_to_go"].to(torch.float32)
        if "success" in batch:
            steps_B = torch.where(batch["success"] == 0, torch.inf, steps_B)
        weight_B = discount_weights(steps_B, self.settings.crl.gamma)
        psi_BD = self.psi(encoded).index_select(0, encoded.words.index_B)
        pairs = Pairs(self.phi(encoded), psi_BD, goal_B, weight_B)
        return contrastive_losses(pairs, self.crl, self.settings.crl.chunk)

    def prefix(self, encoded: Encoded, batch: Batch, stop: bool = False) -> Prefix:
        """What the expert needs of one backbone pass. `stop`: no gradient into the backbone."""
        hidden_BTD = encoded.hidden_BTD.detach() if stop else encoded.hidden_BTD
        context_BND, real_BN = encoded.layout.pick(hidden_BTD, Role.VISION_STATE, Role.INSTRUCTION)
        more_BND = self.look_again(batch, encoded.layout.last(hidden_BTD, Role.INSTRUCTION))
        if more_BND is not None:
            context_BND = torch.cat([context_BND, more_BND.to(context_BND.dtype)], dim=1)
            real_BN = torch.cat([real_BN, real_BN.new_ones(more_BND.shape[:2])], dim=1)
        return self.expert.prefix(context_BND, real_BN)

    def _flow_loss(self, encoded: Encoded, batch: Batch, stop: bool) -> Tensor:
        return self.expert.loss(batch[ACTION], ~batch[f"{ACTION}_is_pad"], self.prefix(encoded, batch, stop))


def check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"PRTS has the stages {', '.join(STAGES)}, got {stage!r}")
