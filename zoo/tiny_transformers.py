"""Hugging Face architectures with tiny random configurations: no download, under a second each.

Unless a row says otherwise: 2 layers, hidden size 32, 4 heads of 8 units, 48 feed-forward units, 50 tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from zoo.setups import Made, Setup
from zoo.vision import torchvision_operators

WORDS: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BASE = {
    **WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
GQA = {**BASE, "num_key_value_heads": 2}
MOE = {**GQA, "num_experts_per_tok": 2, "head_dim": 8}
GPT = {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
BART = {
    **WORDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {**WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
WHISPER = {
    **BART, "num_mel_bins": 7, "max_source_positions": 10, "max_target_positions": 20, "decoder_start_token_id": 1,
}  # fmt: skip
PIXELS = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT_TOWER = {**WORDS, **PIXELS, "max_position_embeddings": 20, "projection_dim": 16}
IMAGE_TOWER = {**PIXELS, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "projection_dim": 16}
CLIP = {"text_config": TEXT_TOWER, "vision_config": IMAGE_TOWER, "projection_dim": 16}
SPEECH = {
    **WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (12, 20), "conv_kernel": (4, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4), "window_size": 2, "image_size": 16, "patch_size": 4}
DEEPSEEK = {
    **GQA, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6, "v_head_dim": 8, "n_routed_experts": 6, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1,
}  # fmt: skip

# name -> (class of the model, class of its configuration, settings)
Table = dict[str, tuple[str, str, dict[str, Any]]]
ENCODERS: Table = {
    "bert": ("BertForMaskedLM", "BertConfig", BASE),
    "bert_cls": ("BertForSequenceClassification", "BertConfig", {**BASE, "num_labels": 3}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", BASE),
    "xlm_roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", BASE),
    "distilbert": (
        "DistilBertForMaskedLM", "DistilBertConfig",
        {**WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    ),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**BASE, "embedding_size": 16}),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**BASE, "embedding_size": 16}),
    "deberta": ("DebertaForMaskedLM", "DebertaConfig", {**BASE, "relative_attention": True, "pos_att_type": ["c2p"]}),
    "deberta_v2": ("DebertaV2ForMaskedLM", "DebertaV2Config", BASE),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", BASE),
    "fnet": ("FNetForMaskedLM", "FNetConfig", {**BASE, "type_vocab_size": 2}),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", BASE),
    "convbert": ("ConvBertForMaskedLM", "ConvBertConfig", {**BASE, "embedding_size": 32}),
    "megatron_bert": ("MegatronBertForMaskedLM", "MegatronBertConfig", BASE),
    "roformer": ("RoFormerForMaskedLM", "RoFormerConfig", {**BASE, "embedding_size": 32}),
    "squeezebert": ("SqueezeBertForMaskedLM", "SqueezeBertConfig", {**BASE, "embedding_size": 32}),
    "mobilebert": (
        "MobileBertForMaskedLM", "MobileBertConfig", {**BASE, "embedding_size": 16, "intra_bottleneck_size": 32}
    ),
    "esm": ("EsmForMaskedLM", "EsmConfig", {**BASE, "position_embedding_type": "rotary"}),
}  # fmt: skip
DECODERS: Table = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 4}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
    "gpt_neo": (
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {
            **WORDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 40,
            "attention_types": [[["global", "local"], 1]], "intermediate_size": 48, "window_size": 4,
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", BASE),
    "opt": ("OPTForCausalLM", "OPTConfig", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "xglm": (
        "XGLMForCausalLM", "XGLMConfig",
        {**WORDS, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 40},
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {**WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptForCausalLM", "MptConfig", {**WORDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40}),
    "falcon": ("FalconForCausalLM", "FalconConfig", BASE),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GQA, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GQA, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GQA, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**GQA, "head_dim": 8, "sliding_window": 4}),
    "phi": ("PhiForCausalLM", "PhiConfig", BASE),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GQA),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", GQA),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GQA),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GQA),
    "cohere": ("CohereForCausalLM", "CohereConfig", GQA),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", GQA),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GQA),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", {**GQA, "head_dim": 8}),
    "persimmon": ("PersimmonForCausalLM", "PersimmonConfig", BASE),
    "glm": ("GlmForCausalLM", "GlmConfig", {**GQA, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GQA, "num_local_experts": 3}),
    "mixtral_bmm": (
        "MixtralForCausalLM", "MixtralConfig",
        {**GQA, "num_local_experts": 3, "experts_implementation": "batched_mm"},
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        {**MOE, "num_experts": 5, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**MOE, "num_experts": 5, "moe_intermediate_size": 20}),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**MOE, "num_experts": 5}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**MOE, "num_local_experts": 5, "sliding_window": 4}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {**WORDS, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "time_step_rank": 2},
    ),
    "mamba2": (
        "Mamba2ForCausalLM", "Mamba2Config",
        {
            **WORDS, "hidden_size": 32, "state_size": 6, "num_hidden_layers": 2, "expand": 2, "num_heads": 8,
            "head_dim": 8, "n_groups": 2, "chunk_size": 4,
        },
    ),
    "rwkv": (
        "RwkvForCausalLM", "RwkvConfig",
        {**WORDS, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "context_length": 40},
    ),
}  # fmt: skip
SEQ2SEQ: Table = {
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", BART),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", BART),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
}
IMAGES: Table = {
    "hf_vit": ("ViTForImageClassification", "ViTConfig", {**PIXELS, "num_labels": 3}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**PIXELS, "num_labels": 3}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**PIXELS, "mlp_ratio": 2, "num_labels": 3}),
    "beit": (
        "BeitForImageClassification", "BeitConfig",
        {**PIXELS, "num_labels": 3, "use_relative_position_bias": True, "use_mean_pooling": True},
    ),
    "siglip_vision": ("SiglipForImageClassification", "SiglipConfig", {"vision_config": PIXELS, "num_labels": 3}),
    "hf_swin": ("SwinForImageClassification", "SwinConfig", {**SWIN, "num_labels": 3}),
    "segformer": (
        "SegformerForImageClassification", "SegformerConfig",
        {
            "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 12], "num_attention_heads": [1, 2],
            "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "num_labels": 3,
        },
    ),
    "hf_convnext": (
        "ConvNextForImageClassification", "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": 3},
    ),
}  # fmt: skip
SPEECHES: Table = {
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH),
    "hubert": ("HubertForCTC", "HubertConfig", SPEECH),
}


def setups() -> Iterator[Setup]:
    """Yield every set-up. Raises ImportError where transformers is not installed."""
    transformers()
    tables = {_words: ENCODERS, _next_word: DECODERS, _words_twice: SEQ2SEQ, _image: IMAGES, _sound: SPEECHES}
    for inputs, table in tables.items():
        for name in table:
            chosen = _spectrogram if name == "whisper" else inputs
            yield Setup(name, partial(_make, *table[name], chosen))
    for name, inputs in (("t5", _words_twice), ("bart", _words_twice), ("whisper", _spectrogram)):
        yield Setup(f"{name}@0", partial(_make, *SEQ2SEQ[name], inputs), outputs=0)
    clip = partial(_make, "CLIPModel", "CLIPConfig", CLIP, _image_and_words)
    yield Setup("clip", clip)
    yield Setup("clip@0,1", clip, outputs=(0, 1))


def transformers() -> Any:
    """Import transformers, quietly, and with torchvision's operators declared where their library does not load."""
    torchvision_operators()
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


def _make(model: str, config: str, settings: dict[str, Any], inputs: Any) -> Made:
    library = transformers()
    return getattr(library, model)(getattr(library, config)(**settings)), inputs()


def _words(length: int = 7) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 49, (2, length))}


def _next_word() -> dict[str, Any]:
    return {**_words(), "use_cache": False}


def _words_twice() -> dict[str, Any]:
    return {**_next_word(), "decoder_input_ids": torch.randint(3, 49, (2, 5))}


def _image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def _image_and_words() -> dict[str, Any]:
    return {**_words(), **_image()}


def _sound() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 60)}


def _spectrogram() -> dict[str, Any]:
    decoded = {"decoder_input_ids": torch.randint(3, 49, (2, 5)), "use_cache": False}
    return {"input_features": torch.randn(2, 7, 20), **decoded}
