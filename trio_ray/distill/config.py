"""The configuration of a distillation (`trio-ray distill`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trio_ray.config import LOCATION, ActorConfig, ModelConfig, S3Config, Section


class StudentConfig(Section):
    """What the student is. Vision tower, projector and token embedding are the teacher's, and stay as they are."""

    layers: int = Field(4, ge=1, description="Decoder layers; at most as many as the teacher has.")
    start: Literal["spread", "first", "fresh"] = Field(
        "spread",
        description="Where the layers' weights come from: the teacher's layers at equal distances, first and last "
        "among them; its first ones; or drawn anew (the head too).",
    )


class LossConfig(Section):
    """What the student is trained on, at every answer token."""

    truth: float = Field(0.5, ge=0.0, description="Weight of the cross-entropy on the true answer's tokens.")
    teacher: float = Field(
        0.5,
        ge=0.0,
        description="Weight of the divergence from the teacher's top-k distribution, all other tokens as one.",
    )
    temperature: float = Field(
        1.0, gt=0.0, description="Both distributions are softened by it; the weight then is times its square."
    )

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossConfig:
        if self.truth == self.teacher == 0:
            raise ValueError("truth and teacher are both 0, so there is nothing to learn from")
        return self


class TrainingConfig(Section):
    """How it is trained: AdamW, a linear warm-up, then half a cosine."""

    steps: int = Field(1000, ge=1, description="Optimizer steps; the samples are gone through as often as that takes.")
    batch_size: int = Field(32, ge=1, description="Samples a step, over all workers.")
    learning_rate: float = Field(1e-3, gt=0.0, description="At the end of the warm-up.")
    final_learning_rate: float = Field(0.0, ge=0.0, description="At the last step.")
    warmup_steps: int = Field(50, ge=0, description="Steps in which the learning rate rises from 0.")
    weight_decay: float = Field(0.05, ge=0.0, description="Of the matrices; norms and biases have none.")
    clip_norm: float = Field(1.0, gt=0.0, description="Longest gradient.")
    seed: int = Field(0, ge=0, description="Of the samples' order and of fresh weights.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the matrix products; weights are float32. 'auto': bfloat16 on a GPU, else float32."
    )
    read_threads: int = Field(8, ge=1, le=256, description="Range reads in flight ahead of a worker's model.")
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints; there is one at the end.")
    log_every: int = Field(50, ge=1, description="Steps between the lines of losses.jsonl.")


class HeldOutConfig(Section):
    """How the student's answers are measured when it is trained."""

    cache: Annotated[str | None, LOCATION] = Field(
        None, description="An embeds cache of held-out samples with true answers; without it nothing is measured."
    )
    max_new_tokens: int = Field(32, ge=1, description="Longest answer, in tokens.")
    batch_size: int = Field(64, ge=1, description="Samples answered together.")


class GangConfig(ActorConfig):
    """Data-parallel training: each replica of the student reads its share of the samples, gradients are added up."""

    max: int = Field(
        1, ge=1, description="Replicas, each a Ray actor. All train together, so the job waits until all have started."
    )


class DistillConfig(Section):
    """A distillation job."""

    cache: Annotated[str, LOCATION] = Field(
        "", description="The samples: a cache of level embeds, a folder or s3://bucket/prefix."
    )
    prefixes: Annotated[str | None, LOCATION] = Field(
        None,
        description="A kv cache of the same samples: the teacher's distributions are computed from its prefixes. By "
        "default they are those stored in `cache` (cache.targets: top_k).",
    )
    output: Annotated[str, LOCATION] = Field(
        "", description="Where the student, its checkpoint and metrics go: a folder or s3://bucket/prefix."
    )
    teacher: ModelConfig = ModelConfig()
    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    test: HeldOutConfig = HeldOutConfig()
    replicas: GangConfig = GangConfig()
    on_bad: Literal["error", "skip"] = Field(
        "error", description="For a sample that is gone or damaged: the job ends, or it is counted and left out."
    )
    s3: S3Config = S3Config()
