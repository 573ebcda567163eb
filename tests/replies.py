"""Bounds the replies of backbones that were not trained to end them."""

from compmem.readers import LatentReader


def keep_short(monkeypatch, tokens=16):
    """A latent reader writes few tokens: a random model goes on until it may not."""
    room = LatentReader._available_tokens
    monkeypatch.setattr(LatentReader, "_available_tokens", lambda reader, *given: min(tokens, room(reader, *given)))
