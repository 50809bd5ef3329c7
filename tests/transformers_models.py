"""Small detectors of Hugging Face, made from configs, and labels for them."""

import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

RT_DETR = {
    "rt_detr": (RTDetrConfig, RTDetrForObjectDetection),
    "rt_detr_v2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
    "d_fine": (DFineConfig, DFineForObjectDetection),
}
DEFORMABLE = {
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetection),
    "conditional_detr": (ConditionalDetrConfig, ConditionalDetrForObjectDetection),
    "dab_detr": (DabDetrConfig, DabDetrForObjectDetection),
}
MODELS = {**RT_DETR, **DEFORMABLE}
OTHERS = {"detr": (DetrConfig, DetrForObjectDetection)}


def backbone() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def config_of(name: str, **options):
    """Two decoder layers, 20 queries, 5 classes."""
    sizes = {"d_model": 32, "decoder_layers": 2, "num_queries": 20, "num_labels": 5}
    sizes |= {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    options = {"backbone_config": backbone()} | sizes | options
    if name in RT_DETR:
        options |= {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "decoder_in_channels": [32] * 3}
        options = {"num_denoising": 8, "freeze_backbone_batch_norms": False} | options
        return RT_DETR[name][0](**options)
    options |= {"encoder_layers": 1, "auxiliary_loss": True, "dropout": 0.0}
    return {**DEFORMABLE, **OTHERS}[name][0](**options)


def model_of(name: str, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    return {**MODELS, **OTHERS}[name][1](config_of(name, **options)).train()


def objects(device="cpu") -> dict:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.4, 0.3]], device=device)
    return {"class_labels": torch.tensor([1, 3], device=device), "boxes": boxes}


def no_objects(device="cpu") -> dict:
    return {name: values[:0] for name, values in objects(device).items()}


def forward(model: PreTrainedModel, labels: list[dict]):
    """On the same images, with the same noise for the denoising queries, whenever it is called."""
    torch.manual_seed(1)
    return model(pixel_values=torch.rand(len(labels), 3, 96, 96).to(model.device), labels=labels)
