"""Published checkpoints that were trained to be left early (LayerSkip, Elhoushi et al. 2024), by hub id.

Their configuration says nothing of it. They have no heads beside the model's own, so exit layers are all that
is to be known: here a quarter and half of the depth, the first of which is where their authors draft.
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
    """Where a model was trained to be left; nowhere, as far as is known here, for most."""
    return EXIT_LAYERS.get(model_id.lower(), ())
