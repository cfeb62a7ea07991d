"""What the groups of known architectures are, to compare with what is found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoo.setups import Row

# Counted by hand: the shapes of all groups, as `shapes_text` writes them, then the rows that have them, each with the
# share of trained elements that some group moves, in percent. In the transformers 4 is the number of heads (or 2 x 2
# with two key-value heads), 8 the units of a head, 32 the residual stream, 48, 64 or 128 the feed-forward units. Where
# rotary positions hold the units of queries and keys, only those of values are left, and what is not rotated.
COUNTED = """
    32 24: mlp=99.7
    16: rnn=99.3 gru_learnt_start=99.7 lstm_cell=99.8 orthogonal=53.8
    16^2: lstm=99.9
    16^2 8^2: lstm_proj=99.9
    16^4: bigru=100.0
    16^4 8^4: bilstm_proj=99.9
    32^2 4x8^2 4: mha_module=99.9 mha_weights=99.9 mha_cross=99.9
    48^2 4x8^4 4^2: transformer_encoder=97.4 xglm=87.7
    48^2 32 20 4x8^8 4^4: transformer_decoder=99.8
    48^4 32 4x8^12 4^6: transformer=99.9
    32 20: glu_swiglu=99.8
    20 16: weight_norm=99.4 spectral_norm=99.4
    32 16 8x8^2 4x8^4 2x8^4 8^2 4^4 2^4: unet=100.0
    12 8^2: autoencoder=99.9
    12: upscaler=99.8
    48^2 32 4x8^4 4^2: transformer_enc_inout=100.0 bert=99.7 roberta=99.7 xlm_roberta=99.7 distilbert=99.7
        deberta_v2=99.7 megatron_bert=99.7 gpt_neo=100.0 opt=100.0 hf_vit=100.0 deit=100.0 beit=100.0
        siglip_vision=100.0
    48^2 32^2 4x8^4 4^2: bert_cls=100.0 deberta=99.8
    48 32 16 4x8^2 4: albert=99.5
    48^2 32 16 4x8^4 4^2: electra=99.7
    48^2 32 4x8^4 4: mpnet=99.7
    48^2 32: fnet=96.6
    48^2 32 4x8^2 4^2: modernbert=99.8 esm=99.7
    48^2 32 2x8^2 8^2 2^4: convbert=99.7
    48^2 32 4x8^2 4^3: roformer=99.7
    4x12^2 4x8^2 8^3 4: squeezebert=99.5
    48^8 32^5 16^2 4x8^4 4^2: mobilebert=99.9
    128^2 32 4x8^4 4^2: gpt2=100.0
    128^2 32 4x8^2 4x4^2 4^2: gptj=99.8 codegen=99.8
    128^2 32 8^4 4^2: gpt_bigcode=100.0
    48^2 32 4x8^2 4x6^2 4^2: gpt_neox=100.0
    128^2 32 8^16: bloom=100.0 mpt=100.0
    128^2 32 8^2 4^2: falcon=100.0
    48^2 32 2x8^2 2x2^2 2^2: llama=100.0 mistral=100.0 qwen2=100.0 qwen3=99.8 gemma2=100.0 gemma3=99.8 phi3=100.0
        olmo=100.0 olmo2=100.0 cohere=100.0 starcoder2=100.0 granite=100.0
    48^2 32 8^2 4^2: gemma=100.0
    48^2 32 4x8^2 4x4^2 4^2: phi=99.7
    48^2 32 2x8^2 2x6^2 2x2^2 2^2: stablelm=100.0
    48^2 32 2x8^2 2x4^2 2x2^2 2^2: nemotron=100.0 glm=100.0
    48^2 32 4x8^2 4^4: persimmon=99.8
    3x48^2 32 2x8^2 3^2 2x2^2 2^2: mixtral=100.0 mixtral_bmm=100.0
    32 28^2 5x20^2 2x8^2 5^2 2x2^2 2^2: qwen2_moe=100.0
    32 5x20^2 2x8^2 5^2 2x2^2 2^2: qwen3_moe=99.9
    5x48^2 32 2x8^2 5^2 2x2^2 2^2: olmoe=100.0 gpt_oss=100.0
    48 32 20^2 12^2 10^2 4x8^2 4x6^2 4^2: deepseek_v3=100.0
    64^2 32 4^2 2^2: mamba=100.0
    32 2x4x8^2 2x6^2 2x4^2 2^2: mamba2=100.0
    48^2 32^3: rwkv=100.0
    48^4 4x8^12 4^4: t5=94.9 mt5=95.6
    48^4 4x8^12 4^6: bart=87.5 mbart=87.2 pegasus=87.8
    48^4 32^2 4x8^12 4^6: whisper=98.2
    64^2 32 4x8^4 4^2: dinov2=100.0
    64 32 16 8 4x4^2 2x4^2 4 2: hf_swin=99.9
    24 16 12 8^4 2x6^2 2: segformer=99.9
    48 32 12 8: hf_convnext=99.9
    48^2 20 12 4x8^5 4^3: wav2vec2=99.7 hubert=99.7
    48^4 32 4x8^12 4^4: t5@0=100.0
    48^4 32 4x8^12 4^6: bart@0=100.0
    48^4 32^3 4x8^12 4^6: whisper@0=100.0
    48^2 40^2 4x8^4 3x8^4 4^2 3^2: clip=72.8
    48^2 40^2 32 24 16 4x8^4 3x8^4 4^2 3^2: clip@0,1=100.0
"""

# Found by a study with another implementation: number of groups, log10 of the number of symmetries, shared / nested.
STUDIED = """
    alexnet=7/28326/28326 vgg16=15/35168/35168 vgg16_bn=15/35168/35168 resnet18=12/5934/5934 resnet50=37/25638/25638
    densenet121=120/16536/16536 mobilenet_v2=25/21116/21116 mobilenet_v3_small=27/10226/10226
    shufflenet_v2_x1_0=25/6771/6771 efficientnet_b0=40/27050/27050 convnext_tiny=22/77560/77560
    regnet_y_400mf=69/3799/8543 resnext50_32x4d=53/11281/24223 squeezenet1_1=25/5160/5160 googlenet=57/13018/13018
    inception_v3=94/32911/32911 vit_b_16=49/116703/140226 swin_t=52/53736/62662 swin_v2_t=76/67738/76664
    maxvit_t=117/90964/101306 timm:mixer_s32_224=17/52376/52376 timm:xcit_nano_12_p16_224=60/17696/20671
    timm:res2net50_26w_4s=93/24243/24243 timm:mobilevit_xxs=61/5750/6780 timm:ghostnet_100=31/14972/14972
    timm:hrnet_w18_small=45/14104/14104 timm:coatnet_nano_rw_224=55/42758/48071
    timm:eva02_tiny_patch14_224=36/15077/17216 timm:convnextv2_atto=16/18979/18979 timm:poolformer_s12=16/37811/37811
    timm:gmlp_s16_224=31/57035/57035
"""


@dataclass(frozen=True)
class Expected:
    """Shapes of all groups, and the share of trained elements they cover in percent."""

    shapes: str
    covered: float

    @property
    def log10_shared(self) -> float:
        """log10 of the number of symmetries with one permutation for each group."""
        return sum(count * _log10_factorial(shape[-1]) for shape, count in _read(self.shapes))

    @property
    def log10_nested(self) -> float:
        """The same with an own permutation for each unit of the parents."""
        return sum(count * math.prod(shape[:-1]) * _log10_factorial(shape[-1]) for shape, count in _read(self.shapes))


def _read(shapes: str) -> list[tuple[list[int], int]]:
    pairs = [text.partition("^") for text in shapes.split()]
    return [([int(size) for size in shape.split("x")], int(count or 1)) for shape, _, count in pairs]


def _log10_factorial(number: int) -> float:
    return math.lgamma(number + 1) / math.log(10)


def _counted() -> dict[str, Expected]:
    found, shapes = {}, ""
    for line in COUNTED.strip().splitlines():
        before, colon, rows = line.rpartition(":") if ": " in line else ("", "", line)
        shapes = before.strip() if colon else shapes
        for name, _, covered in (row.partition("=") for row in rows.split()):
            found[name] = Expected(shapes, float(covered))
    return found


EXPECTED = _counted()
STUDY = {name: tuple(map(int, numbers.split("/"))) for name, _, numbers in (r.partition("=") for r in STUDIED.split())}


WHY = {
    "shufflenet_v2_x1_0": "the halves that pass through a shuffle keep orders of their own",
    "swin_v2_t": "the two coordinates of a constant table are not counted: buffers keep their order",
}


def remark(row: Row) -> str:
    """Compare a row with what is expected of it."""
    if row.name in EXPECTED:
        expected = EXPECTED[row.name].shapes
        return "as counted" if row.shapes == expected else f"counted: {expected}; found: {row.shapes}"
    if row.name in STUDY:
        groups, shared, nested = STUDY[row.name]
        near = abs(row.log10_shared - shared) < 1 and abs(row.log10_nested - nested) < 1  # the study rounds down or up
        if near and groups == row.groups:
            return "as in the study"
        return f"study: {groups} groups, {shared} / {nested} ({WHY.get(row.name, 'to be explained')})"
    return ""
