"""Every setting of a run: its type, its range, its meaning, and the release's value as default."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)
from pydantic_core import PydanticCustomError

# Keys of MMSA's and the release's config files that have no effect here: accepted, with a warning.
IGNORED_KEYS = (
    "num_classes",
    "language",
    "train_samples",
    "need_model_aligned",
    "seq_lens",
    "optimizer",
    "scheduler",
)

# The value that `objective` gives to each switch that is null.
RELEASE = {
    "ort": "batch",
    "margin": "release",
    "homo_repr": "off",
    "hetero_repr": "min_cosine",
    "gd_prior": "release",
    "fusion": "sigmoid",
    "leftover_batches": "drop",
    "weight_decay_applied": False,
    "valid_loss": "batch_mean",
}
PAPER = {
    **RELEASE,  # the paper does not define the other switches
    "ort": "paper",
    "margin": "paper",
    "hetero_repr": "off",
    "gd_prior": "none",
    "fusion": "gate",
}
PRESETS = {"release": RELEASE, "paper": PAPER}

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=64)]
Probability = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Two = Field(min_length=2, max_length=2)
Three = Field(min_length=3, max_length=3)
Six = Field(min_length=6, max_length=6)
Representation = Literal["off", "l1", "min_cosine"]
KeyMetric = Literal["Loss", "MAE", "Acc_2", "F1_score", "Acc_7"]


def setting(default, description: str):
    """A field of `DMDConfig`; `...` as default makes it required."""
    return Field(default, description=description)


def invalid_setting(key: str, value, expected: str) -> PydanticCustomError:
    """Make the error of a validator that compares several settings.

    Args:
        key: The setting to change.
        value: Its value.
        expected: What was expected, as the end of a sentence.

    Returns:
        The error, whose context has `key` and `value`.
    """
    context = {"key": key, "value": value, "expected": expected}
    return PydanticCustomError("invalid_setting", "{expected}", context)


class Strict(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """Strict types: strings are not converted to numbers, nor 1 to true; ints are valid floats."""


class DMDConfig(Strict):
    """The settings of one data set, merged and flat; names as in the released config."""

    # Data
    featurePath: Name = setting(
        ..., "feature pickle; a relative path starts from `dataset_root_dir`"
    )
    feature_dims: Annotated[list[Width], Three] = setting(
        [768, 5, 20], "widths of text (the hidden size of `pretrained`), audio and vision features"
    )
    need_data_aligned: bool = setting(
        True, "use word-aligned features; false: each modality keeps its own sampling rate"
    )
    dataset_root_dir: Name = setting("./dataset", "folder of the data sets")

    # Text encoder
    use_bert: bool = setting(
        True, "encode the tokens with `pretrained`; false: use the text features of the pickle"
    )
    use_finetune: bool = setting(True, "fine-tune the text encoder; false: freeze it")
    transformers: Literal["bert", "roberta", "auto"] = setting(
        "bert", "architecture of `pretrained`; auto: any encoder that transformers.AutoModel loads"
    )
    pretrained: Name = setting(
        "bert-base-uncased", "text encoder: name on the Hugging Face hub, or a local folder"
    )

    # Model
    dst_feature_dim_nheads: Annotated[list[Width], Two] = setting(
        [50, 10], "[d, h]: common feature width and number of attention heads"
    )
    feature_decoupling: bool = setting(
        True, "split features into specific and common parts; false: use the projections for both"
    )
    cross_modal_attention: bool = setting(
        True, "attend between modalities; false: memory transformers read each part twice"
    )
    nlevels: Layers = setting(4, "layers of each transformer; memory transformers have at least 3")
    attn_mask: bool = setting(True, "causal attention: queries do not see later steps")
    conv1d_kernel_size_l: Width = setting(5, "kernel size of the convolution that projects text")
    conv1d_kernel_size_a: Width = setting(5, "kernel size of the convolution that projects audio")
    conv1d_kernel_size_v: Width = setting(5, "kernel size of the convolution that projects vision")
    text_dropout: Probability = setting(0.5, "dropout of the text features")
    attn_dropout: Probability = setting(
        0.3, "dropout of attention weights: text as source, and memory transformers"
    )
    attn_dropout_a: Probability = setting(0.2, "dropout of attention weights: audio as source")
    attn_dropout_v: Probability = setting(0.0, "dropout of attention weights: vision as source")
    relu_dropout: Probability = setting(0.0, "dropout after the ReLU of feed-forward layers")
    embed_dropout: Probability = setting(0.2, "dropout of the transformers' inputs")
    res_dropout: Probability = setting(0.0, "dropout before each residual sum of a transformer")
    output_dropout: Probability = setting(0.5, "dropout in every prediction head")
    fast: bool = setting(
        True, "use optimized attention on the CPU and batched encoders on CUDA; false: plain code"
    )

    # Switches for differences between paper and release; null: as `objective` defines (PRESETS)
    objective: Literal["release", "paper"] = setting(
        "release", "preset for the switches below that are null"
    )
    ort: Literal["batch", "feature", "paper"] | None = setting(
        None, "orthogonality loss: over the batch, over the width, or as in the paper (not clamped)"
    )
    margin: Literal["release", "paper"] | None = setting(
        None, "margin loss: margin_slope * |label distance|, or triplets with margin_alpha"
    )
    homo_repr: Representation | None = setting(
        None, "representation term of HomoGD: none, L1 distance, or cosine similarity (minimized)"
    )
    hetero_repr: Representation | None = setting(
        None, "representation term of HeteroGD; values as for `homo_repr`"
    )
    gd_prior: Literal["release", "none"] | None = setting(
        None, "graph edges: softmax plus prior, with a pull to the prior; or softmax alone"
    )
    fusion: Literal["sigmoid", "gate"] | None = setting(
        None, "input of the final head: sigmoid(Wx), or sigmoid(Wx) * x"
    )
    leftover_batches: Literal["drop", "step"] | None = setting(
        None, "the last, incomplete accumulation group: drop it, or step"
    )
    weight_decay_applied: bool | None = setting(
        None, "pass `weight_decay` to Adam; false: `weight_decay` has no effect"
    )
    valid_loss: Literal["batch_mean", "sample_mean"] | None = setting(
        None, "Loss of an evaluation: mean over batches of `batch_size`, or over utterances"
    )

    # Objective
    lambda_decoupling: NonNegativeFloat = setting(0.1, "λ1, weight of the decoupling losses")
    lambda_distillation: NonNegativeFloat = setting(0.05, "λ2, weight of the distillation losses")
    gamma: NonNegativeFloat = setting(
        0.1, "γ, weight of margin and orthogonality within the decoupling losses"
    )
    recon_weight: NonNegativeFloat = setting(
        1.0, "weight of L_rec within λ1 * L_dec; 0 disables it"
    )
    cycle_weight: NonNegativeFloat = setting(
        1.0, "weight of L_cyc within λ1 * L_dec; 0 disables it"
    )
    margin_weight: NonNegativeFloat = setting(1.0, "weight of L_mar within λ1 * γ; 0 disables it")
    ort_weight: NonNegativeFloat = setting(1.0, "weight of L_ort within λ1 * γ; 0 disables it")
    homo_weight: NonNegativeFloat = setting(
        1.0, "weight of HomoGD's L_dtl within λ2; 0 disables it"
    )
    hetero_weight: NonNegativeFloat = setting(
        1.0, "weight of HeteroGD's L_dtl within λ2; 0 disables it"
    )
    margin_slope: NonNegativeFloat = setting(
        0.15, "margin per unit of label distance, if `margin` is release"
    )
    margin_alpha: NonNegativeFloat = setting(0.1, "α, constant margin, if `margin` is paper")
    homo_gd_size: Width = setting(64, "width of the nodes of the homogeneous graph")
    hetero_gd_size: Width = setting(32, "width of the nodes of the heterogeneous graph")
    homo_gd_prior: Annotated[list[float], Six] = setting(
        [0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        "prior of the homogeneous edges V→L, A→L, L→V, A→V, L→A, V→A",
    )
    hetero_gd_prior: Annotated[list[float], Six] = setting(
        [0.0, 0.0, 1.0, 0.0, 1.0, 1.0],
        "prior of the heterogeneous edges, in the order of `homo_gd_prior`",
    )
    gd_prior_temperature: PositiveFloat = setting(0.25, "temperature of the softmax of the priors")
    gd_edge_temperature: PositiveFloat = setting(8.0, "temperature of the softmax of the edges")
    gd_reg_weight: NonNegativeFloat = setting(
        10.0, "weight of the term that pulls mean edges to the prior"
    )
    gd_repr_weight: NonNegativeFloat = setting(10.0, "weight of the representation terms")

    # Training
    batch_size: Count = setting(16, "utterances per training batch")
    eval_batch_size: Count = setting(
        64, "utterances per evaluation batch; affects only speed and memory"
    )
    update_epochs: Count = setting(
        10, "gradient accumulation: batches per optimizer step (summed, not averaged)"
    )
    grad_clip: float = setting(0.6, "clip each gradient element to this value; -1: do not clip")
    learning_rate: PositiveFloat = setting(1e-4, "initial learning rate of Adam")
    learning_rate_bert: PositiveFloat | None = setting(
        None, "initial learning rate of the text encoder; null: `learning_rate`"
    )
    adam_betas: Annotated[list[Probability], Two] = setting([0.9, 0.999], "β1 and β2 of Adam")
    adam_eps: PositiveFloat = setting(1e-8, "ε of Adam")
    scheduler_factor: OpenFraction = setting(
        0.5, "factor on the learning rates when Loss on valid stops improving"
    )
    patience: NonNegativeInt = setting(
        5, "epochs without a lower Loss on valid before the learning rates are reduced"
    )
    weight_decay: NonNegativeFloat = setting(
        0.005, "L2 term of Adam, if `weight_decay_applied` is true"
    )
    early_stop: Count = setting(10, "stop after this many epochs without a new best epoch")
    max_epochs: Count | None = setting(
        None, "maximum number of epochs; null: only early stopping ends training"
    )
    KeyEval: KeyMetric = setting("Loss", "metric on valid that selects the best epoch")
    keep_checkpoints: Count | Literal["all"] = setting(
        "all", "number of recent checkpoints to keep, besides best.pth"
    )
    min_improvement: NonNegativeFloat = setting(
        1e-6, "smallest improvement of KeyEval that counts as a new best"
    )

    @model_validator(mode="after")
    def _resolve_switches(self) -> "DMDConfig":
        for key, value in PRESETS[self.objective].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> "DMDConfig":
        width, heads = self.dst_feature_dim_nheads
        if width % heads != 0 or width % 2 != 0:
            raise invalid_setting(
                "dst_feature_dim_nheads",
                self.dst_feature_dim_nheads,
                "d must be even and divisible by h",
            )
        if not self.feature_decoupling and self.lambda_decoupling > 0:
            raise invalid_setting(
                "lambda_decoupling",
                self.lambda_decoupling,
                "set it to 0 if feature_decoupling is false",
            )
        if self.grad_clip <= 0 and self.grad_clip != -1:
            raise invalid_setting(
                "grad_clip", self.grad_clip, "expected more than 0, or -1 for no clipping"
            )
        return self
