"""Published checkpoints that were trained to be left early (LayerSkip, Elhoushi et al. 2024), by hub id.

Their configuration does not say so. They have no exit heads beside the LM head, so only exit layers are
listed: a quarter and half of the depth. The authors draft at the first.
"""

EXIT_LAYERS: dict[str, tuple[int, ...]] = {
    "facebook/layerskip-llama2-7b": (8, 16),
    "facebook/layerskip-llama2-13b": (10, 20),
    "facebook/layerskip-llama2-70b": (20, 40),
    "facebook/layerskip-codellama-7b": (8, 16),
    "facebook/layerskip-codellama-34b": (12, 24),
    "facebook/layerskip-llama3-8b": (8, 16),
    "facebook/layerskip-llama3.2-1b": (4, 8),
}


def exit_layers_of(model_id: str) -> tuple[int, ...]:
    """Layers that a checkpoint was trained to exit at; () for unlisted models."""
    return EXIT_LAYERS.get(model_id.lower(), ())
