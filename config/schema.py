"""Every setting of a run: its type, its range, its meaning, and the release's value as its default."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

IGNORED_KEYS = ("weight_decay", "num_classes", "language", "train_samples", "need_model_aligned")
"""Accepted so that existing files load, and without effect."""

Flag = StrictBool
Name = Annotated[StrictStr, Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Pattern = Annotated[list[float], Field(min_length=6, max_length=6)]


class DMDConfig(BaseModel):
    """The settings of one data set, merged and flat; lengths and names as in the released config."""

    # strict: "1" is no number and 1 no flag; an int is still a float.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    # Data
    featurePath: Name = Field(description="feature pickle, relative to dataset_root_dir or absolute")
    feature_dims: Annotated[list[Count], Field(min_length=3, max_length=3)] = [768, 5, 20]
    need_data_aligned: Flag = True
    dataset_root_dir: Name = "./dataset"

    # Text encoder
    use_bert: Flag = True
    use_finetune: Flag = True
    transformers: Literal["bert"] = "bert"
    pretrained: Name = "bert-base-uncased"

    # Model
    dst_feature_dim_nheads: Annotated[list[Count], Field(min_length=2, max_length=2)] = [50, 10]
    nlevels: Count = 4
    attn_mask: Flag = True
    conv1d_kernel_size_l: Count = 5
    conv1d_kernel_size_a: Count = 5
    conv1d_kernel_size_v: Count = 5
    text_dropout: Probability = 0.5
    attn_dropout: Probability = 0.3
    attn_dropout_a: Probability = 0.2
    attn_dropout_v: Probability = 0.0
    relu_dropout: Probability = 0.0
    embed_dropout: Probability = 0.2
    res_dropout: Probability = 0.0
    output_dropout: Probability = 0.5

    # Objective
    lambda_decoupling: NonNegative = Field(0.1, description="λ1, weight of the decoupling losses")
    lambda_distillation: NonNegative = Field(0.05, description="λ2, weight of the distillation losses")
    gamma: NonNegative = Field(0.1, description="γ, weight of margin and orthogonality among the decoupling losses")
    margin_slope: NonNegative = Field(0.15, description="margin per unit of label distance")
    homo_gd_size: Count = Field(64, description="node width of the homogeneous graph")
    hetero_gd_size: Count = Field(32, description="node width of the heterogeneous graph")
    homo_gd_prior: Pattern = Field([0, 0, 1, 0, 1, 0], description="pattern over V→L, A→L, L→V, A→V, L→A, V→A")
    hetero_gd_prior: Pattern = Field([0, 0, 1, 0, 1, 1], description="as homo_gd_prior")
    gd_prior_temperature: Positive = 0.25
    gd_edge_temperature: Positive = 8.0
    gd_reg_weight: NonNegative = Field(10.0, description="pull of the mean edges to the prior")
    gd_repr_weight: NonNegative = Field(10.0, description="weight of the representation terms")

    # Training
    batch_size: Count = 16
    update_epochs: Count = Field(10, description="batches whose gradients add up before a step")
    grad_clip: float = Field(0.6, description="largest absolute gradient; -1: no clipping")
    optimizer: Literal["adam"] = "adam"
    learning_rate: Positive = 1e-4
    adam_betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    adam_eps: Positive = 1e-8
    scheduler: Literal["plateau"] = "plateau"
    scheduler_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[StrictInt, Field(ge=0)] = 5
    early_stop: Count = 10
    max_epochs: Count | None = Field(None, description="stop here at the latest; null: only early stopping")
    KeyEval: Literal["Loss", "MAE", "Acc_2", "F1_score", "Acc_7"] = "Loss"
    min_improvement: NonNegative = 1e-6

    # IGNORED_KEYS
    weight_decay: NonNegative = 0.005
    num_classes: Count = 3
    language: Name = "en"
    train_samples: Count = 1284
    need_model_aligned: Flag = True

    @model_validator(mode="after")
    def _check_together(self) -> "DMDConfig":
        width, heads = self.dst_feature_dim_nheads
        if width % heads:
            raise ValueError(
                f"dst_feature_dim_nheads is [{width}, {heads}], but the width {width} must be divisible by the "
                f"{heads} heads"
            )
        if width % 2:
            raise ValueError(f"dst_feature_dim_nheads is [{width}, {heads}], but the width must be even (positions)")
        if self.grad_clip <= 0 and self.grad_clip != -1:
            raise ValueError(f"grad_clip is {self.grad_clip}; allowed: greater than 0, or -1 for no clipping")
        return self


SETTING_NAMES = tuple(DMDConfig.model_fields)
