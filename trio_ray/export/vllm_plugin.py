"""What vLLM loads by itself in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

from typing import Annotated


def register() -> None:
    """Let the image embeddings of a batch differ in their rows.

    vLLM's LLaVA-NeXT declares the number of an image's rows as the same for a whole batch, so that two pruned images
    of different numbers of rows would end the engine. Its code takes them; only the declaration is changed.
    """
    import torch
    from vllm.model_executor.models.llava_next import LlavaNextImageEmbeddingInputs
    from vllm.utils.tensor_schema import TensorShape

    shape = TensorShape("bn", "ifs", "hs", dynamic_dims={"ifs"})
    LlavaNextImageEmbeddingInputs.__annotations__["data"] = Annotated[torch.Tensor | list[torch.Tensor], shape]
