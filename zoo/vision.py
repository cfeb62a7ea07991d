"""torchvision and timm: image, segmentation and video models with random weights, on images as small as they allow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from zoo.setups import Made, Setup

SIDE = 64
# Models that need more than 64 pixels, or to be told how many there are.
SIDES = {"inception_v3": 80, "maxvit_t": 224, "vit_h_14": 56}
CLIPS = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
CLIP = (4, 32)  # frames, side
# Hundreds of millions of weights, several times over in float64: only with --all.
HUGE = frozenset(
    """convnext_large regnet_y_128gf regnet_y_32gf regnet_x_32gf vit_h_14 vit_l_16 vit_l_32 efficientnet_b7
    efficientnet_v2_l wide_resnet101_2 resnext101_32x8d resnext101_64x4d swin_b swin_v2_b swin3d_b vgg13 vgg13_bn vgg19
    vgg19_bn""".split()
)

# One small model of every family of timm at least (few native sizes above 256 pixels).
TIMM = """
    beit_base_patch16_224 bat_resnext26ts eca_botnext26ts_256 halonet_h1 mobileone_s1 repvgg_a0 gernet_s cait_xxs24_224
    coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto convnextv2_atto convnext_zepto_rms cpubone_nano
    crossvit_tiny_240 cs3darknet_s cspresnet50 cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224 densenetblur121d
    dla46_c dla60x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0_gn tf_mixnet_s
    efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny ghostnet_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small
    iformer_t inception_next_atto inception_resnet_v2 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
    coatnet_nano_rw_224 poolformer_s12 caformer_s18 mixer_s32_224 gmlp_s16_224 resmlp_12_224 mobilenetv3_small_050
    mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny nextvit_small nf_regnet_b0 eca_nfnet_l0 pit_ti_224
    pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2net50_26w_4s resnest14d resnet10t
    seresnext26t_32x4d resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_s3_tiny_224 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
    twins_svt_small visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224
    samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
    xcit_nano_12_p16_224 naflexvit_base_patch16_gap
"""


@cache
def torchvision_operators() -> torch.library.Library | None:
    """Declare the operators that torchvision's compiled part defines, where it does not load.

    A wheel built for CUDA beside a CPU build of torch cannot be imported otherwise, nor can what imports it. Beside
    another build it can, and declaring them twice would end the process.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:  # it is not installed
        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def torchvision_setups(everything: bool = False) -> Iterator[Setup]:
    """Yield torchvision's classification, segmentation and video models.

    Args:
        everything: the largest too.

    Raises:
        ImportError: torchvision is not installed.
    """
    torchvision_operators()
    from torchvision import models

    kinds = {_classifier: models, _segmenter: models.segmentation, _video: models.video}
    for make, module in kinds.items():
        for name in models.list_models(module=module):
            if everything or name not in HUGE:
                yield Setup(name, partial(make, name))


def timm_setups() -> Iterator[Setup]:
    """Yield one or more small models of every family in timm. Raises ImportError where timm is not installed."""
    torchvision_operators()
    import timm

    known = set(timm.list_models())
    for name in TIMM.split():
        if name in known:
            yield Setup(f"timm:{name}", partial(_timm, name))


def _classifier(name: str) -> Made:
    from torchvision import models

    side = SIDES.get(name, SIDE)
    settings: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):
        settings["image_size"] = side
    return models.get_model(name, weights=None, **settings), (torch.randn(2, 3, side, side),)


def _segmenter(name: str) -> Made:
    from torchvision import models

    return models.get_model(name, weights=None, weights_backbone=None), (torch.randn(2, 3, SIDE, SIDE),)


def _video(name: str) -> Made:
    from torchvision import models

    frames, side = CLIPS.get(name, CLIP)
    return models.get_model(name, weights=None), (torch.randn(2, 3, frames, side, side),)


def _timm(name: str) -> Made:
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, (torch.randn(2, *model.pretrained_cfg["input_size"]),)
