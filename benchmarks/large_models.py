"""Discovery on models too large to load: time and peak memory on the meta device, where no weight is allocated.

Each model has a process of its own, so that its peak is not that of another; seconds are of the whole
`permutation_spec`, export included; the peak is all the process ever had, torch and transformers included.

    python -m benchmarks.large_models [--only llama_8b]
"""

import argparse
import logging
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from zoo.tiny_transformers import transformers

import onebasin as ob

LENGTH = 16  # of the token sequences; no size of a parameter depends on it


def llama_8b() -> nn.Module:
    """32 layers, 32 query heads on 8 key-value heads of 128 units."""
    library = transformers()
    return library.LlamaForCausalLM(
        library.LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        )
    )


def mixtral_8x7b() -> nn.Module:
    """32 layers of 8 experts each, two of them chosen for every token."""
    library = transformers()
    return library.MixtralForCausalLM(
        library.MixtralConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=8,
        )
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"llama_8b": llama_8b, "mixtral_8x7b": mixtral_8x7b}


def measure(name: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with torch.device("meta"):
        model, tokens = MODELS[name]().eval(), torch.zeros(2, LENGTH, dtype=torch.long)
    clocks = time.perf_counter, time.process_time
    begun = [clock() for clock in clocks]
    spec = ob.permutation_spec(model, {"input_ids": tokens, "use_cache": False})
    wall, cpu = (clock() - start for clock, start in zip(clocks, begun, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = sum(value.numel() for value in model.parameters()) / 1e9
    print(
        f"{name}: {count:.1f} G parameters, {len(spec.sizes)} groups, {spec.covered():.1%} covered, "
        f"10^{spec.log10_symmetries():.0f} symmetries; {wall:.1f} s ({cpu:.1f} s of CPU), peak {peak:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    only = parser.parse_args().only
    for name in [only] if only else MODELS:
        child = multiprocessing.get_context("spawn").Process(target=measure, args=(name,))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"{name} failed")


if __name__ == "__main__":
    main()
