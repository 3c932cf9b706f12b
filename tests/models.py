"""A second model for tests and benchmarks: the first layers of a real one, with its tokenizer and its dimensions."""

from __future__ import annotations

from pathlib import Path

from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files


def cut(directory: Path, *, model: str = DEFAULT_MODEL, layers: int = 3) -> str:
    """Saves the first layers of a model; returns what ``--model`` takes. Loads torch."""
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(model_files.locate(ModelSpec("sentence-transformers", model)).path), device="cpu")
    transformer = whole[0].auto_model
    transformer.encoder.layer = transformer.encoder.layer[:layers]
    transformer.config.num_hidden_layers = layers
    made = directory / f"{model.rpartition('/')[2]}-{layers}-layers"
    whole.save_pretrained(str(made))
    return str(made)
